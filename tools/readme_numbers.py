# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Write the measured numbers of README.md from the committed summaries of the experiments.

Between the two markers stands what this prints; ``--check`` only tells whether it does (status 1 if
not), which a test asks. Needs no more than Python.
"""

from collections.abc import Iterator
import json
from pathlib import Path
import sys
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / 'README.md'
REPORT = ROOT / 'docs' / 'report'
BEGIN, END = '<!-- numbers: begin -->', '<!-- numbers: end -->'
LABELS = {**{f'fixed-{alpha}': f'fixed α {alpha}' for alpha in ('0.25', '0.5', '0.75', '0.95')},
          'quantised': 'quantised alone', 'paper': "paper's policy", 'joint': '**ours**'}

Row = dict[str, Any]


def summaries(name: str) -> list[Row]:
    """Return the committed summaries of an experiment: per machine, and through the ROS action."""
    return [json.loads(path.read_text(encoding='utf-8'))
            for path in sorted(REPORT.rglob(f'{name}/summary.json'))]


def provenance(summary: Row) -> str:
    """Return where and when, for the line under a table."""
    machine = summary['machine']
    missing = summary['cases_planned'] - summary['cases_done']
    return (f'{machine["info"]["name"]} on {machine["info"]["device"]}, {machine["date"]}, commit '
            f'{machine["commit"]}, {summary["queries"]} queries'
            + (f', {missing} of {summary["cases_planned"]} cases not run' if missing else '')
            + (', `--quick`' if summary['quick'] else ''))


def left_out(summary: Row) -> Iterator[str]:
    """Yield what a run does not show, and why."""
    for each in summary['skipped']:
        yield f'Left out: {each["what"]}: {each["why"]}.'


def budgets(summary: Row) -> Iterator[str]:
    """Yield a table of score / completion over budgets per strategy."""
    table = summary['results']['table']
    for strategy in dict.fromkeys(row['strategy'] for row in table):
        rows = [row for row in table if row['strategy'] == strategy]
        at = sorted({row['budget_s'] for row in rows})
        yield f'| {strategy}, budget | ' + ' | '.join(f'{budget:.3g} s' for budget in at) + ' |'
        yield '|---' * (len(at) + 1) + '|'
        for method in dict.fromkeys(row['method'] for row in rows):
            cells = {row['budget_s']: row for row in rows if row['method'] == method}
            yield f'| {LABELS.get(method, method)} | ' + ' | '.join(
                _pair(cells.get(budget)) for budget in at) + ' |'
        yield ''
    through = ' through the ROS action' if summary['ros'] else ''
    yield ('Average score / completed in time (a late answer scores 0). `timebill experiment '
           f'budgets`{through}: {provenance(summary)}.')
    yield from left_out(summary)
    pairs = [row for row in table if row.get('ahead') is not None]
    if pairs:
        yield ('On the same questions ours scores higher than a baseline at '
               f'{sum(row["ahead"] > 0.0 for row in pairs)} of {len(pairs)} points (with the whole '
               '95 % bootstrap interval at '
               f'{sum(row["ahead_low"] > 0.0 for row in pairs)}), lower at '
               f'{sum(row["ahead"] < 0.0 for row in pairs)} (with the whole interval at '
               f'{sum(row["ahead_high"] < 0.0 for row in pairs)}).')
    behind = summary['results']['losses']
    if behind:
        yield 'Ours is behind: ' + '; '.join(behind) + '.'


def _pair(row: Row | None) -> str:
    return '–' if row is None else f'{row["score"]:.3f} / {row["completed"]:.0%}'


def robot(summary: Row) -> Iterator[str]:
    """Yield a line per loop."""
    for row in summary['results']['table']:
        yield (f'- {row["method"]}: acts on an answer in time at {row["acted"]:.0%} of {row["n"]} '
               f'ticks, latest answer {row["latest_s"]:.2f} s after its deadline')
    yield ''
    through = ' through the ROS action' if summary['ros'] else ''
    yield f'`timebill experiment robot`{through}: {provenance(summary)}.'
    yield from left_out(summary)


def block() -> str:
    """Return what stands between the markers."""
    lines: list[str] = []
    for name, write in (('budgets', budgets), ('robot', robot)):
        for summary in summaries(name):
            lines += [*write(summary), '']
    if not lines:
        lines = ['No experiment has been committed yet (`timebill experiment`, `timebill report`).']
    return '\n'.join(lines).strip()


def main(arguments: list[str]) -> int:
    """Rewrite the block, or check it."""
    text = README.read_text(encoding='utf-8')
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        print(f'{README.name} lacks the markers {BEGIN} and {END}', file=sys.stderr)
        return 1
    wanted = f'{before}{BEGIN}\n{block()}\n{END}{after}'
    if '--check' in arguments:
        if wanted != text:
            print('the numbers in README.md are not those of docs/report: run '
                  'python3 tools/readme_numbers.py', file=sys.stderr)
        return int(wanted != text)
    README.write_text(wanted, encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
