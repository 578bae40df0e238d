# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Writes tables into the docs, from the JSON of their measurements.

    python benchmarks/tables.py [--check]

Each table stands between ``<!-- table NAME -->`` and ``<!-- end -->``; NAME is a file of
docs/measurements without its ending, or FILE:PART, a part of it, or quality/FILE, one of config.
A table whose file is not there stays as it is.
"""

import json
from pathlib import Path
import re
import sys

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from timebill_ros.experiments import (  # noqa: E402, I100
    accuracy_report, bench_length, bench_plan, budget_report, cpu_report, drift_report, gpu_report,
    load_report, node_report)
from timebill_ros.length_predictor import tables_markdown  # noqa: E402

MEASUREMENTS, CONFIG = ROOT / 'docs' / 'measurements', ROOT / 'config'
PAGES = ('docs/estimator.md', 'docs/calibration.md', 'docs/cpu-engine.md',
         'docs/gpu-engine.md', 'docs/gpu-prefill.md', 'docs/planner.md', 'docs/executor.md',
         'docs/length-predictor.md', 'docs/node.md')
MAKERS = {
    'accuracy': accuracy_report.table, 'clients': node_report.clients, 'cpu': cpu_report.table,
    'drift': drift_report.table, 'length': bench_length.markdown, 'load': load_report.table,
    'node': node_report.table, 'pessimism': budget_report.pessimism, 'plan': bench_plan.markdown,
    'quality': budget_report.quality}
PART_MAKERS = {'length': tables_markdown.table}     # all others are of the CUDA engine
_TABLE = re.compile(
    r'(<!-- table (?P<name>[\w./-]+)(:(?P<part>[\w ]+))? -->\n).*?(?P<end><!-- end -->)', re.DOTALL)


def table(match: re.Match[str]) -> str:
    """Return a table made anew, with its marks; as it was where there is no measurement."""
    path = (CONFIG if '/' in match['name'] else MEASUREMENTS) / f'{match["name"]}.json'
    if not path.is_file():
        print(f'{path} is not there: its table stays as it is', file=sys.stderr)
        return match[0]
    result = json.loads(path.read_text(encoding='utf-8'))
    part = match['part']
    if part and part not in result:
        print(f'{path} has no {part}: its table stays as it is', file=sys.stderr)
        return match[0]
    kind = re.split('[/-]', match['name'])[0]
    made = PART_MAKERS.get(kind, gpu_report.table)(result, part) if part else MAKERS[kind](result)
    return f'{match[1]}{made}{match["end"]}'


def main() -> int:
    """Rewrite the pages, or only tell whether that would change one; returns the exit status."""
    changed = False
    for name in PAGES:
        page = ROOT / name
        before = page.read_text(encoding='utf-8')
        after = _TABLE.sub(table, before)
        changed |= after != before
        if '--check' not in sys.argv:
            page.write_text(after, encoding='utf-8')
    return int(changed and '--check' in sys.argv)


if __name__ == '__main__':
    sys.exit(main())
