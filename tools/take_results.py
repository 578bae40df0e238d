# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Take the results of a run into docs/report, and write all that is made of them.

    python tools/take_results.py experiments.tgz [h200]

``experiments.tgz`` is what benchmarks/experiments_on_gpu.sh leaves. The rows are gzipped, summaries
made anew, the page written to docs/report/NAME.html, the numbers into README.md. Run it with the
engine's interpreter, and matplotlib. Ends with status 1 if a row was not measured as it claims, or
the report is too large.
"""

import gzip
from pathlib import Path
import shutil
import subprocess
import sys
import tarfile
import tempfile

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from timebill_ros.cli import main as timebill  # noqa: E402
from timebill_ros.experiments.recorder import ROWS  # noqa: E402
from timebill_ros.experiments.run import summarise  # noqa: E402

REPORT = ROOT / 'docs' / 'report'
PREDICTORS = ROOT / 'docs' / 'measurements' / 'length-predictors.json'
MAX_BYTES = 5_000_000
FIGURE = 'budgets-kill.png'     # the one that README shows
ROS = 'ros'     # folder of what went through the ROS action


def take(archive: Path, name: str) -> list[str]:
    """Put the results in place; returns what is wrong with them."""
    with tempfile.TemporaryDirectory() as scratch:
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter='data')
        found = sorted(path.parent for path in Path(scratch).rglob(ROWS))
        if not found:
            return [f'{archive} holds no {ROWS}']
        place = REPORT / name
        shutil.rmtree(place, ignore_errors=True)
        return [each for folder in found for each in _taken(folder, place)]


def _taken(folder: Path, place: Path) -> list[str]:
    """Gzip the rows of an experiment and summarise them; returns what is wrong with them."""
    target = place / ROS / folder.name if folder.parent.name == ROS else place / folder.name
    target.mkdir(parents=True)
    with (folder / ROWS).open('rb') as rows, (target / f'{ROWS}.gz').open('wb') as out, \
            gzip.GzipFile(filename='', fileobj=out, mode='wb', mtime=0) as packed:
        shutil.copyfileobj(rows, packed)
    summary = summarise(target)
    if not summary['queries']:
        print(f'{target.relative_to(ROOT)}: nothing was measured, left out')
        shutil.rmtree(target)
        return []
    print(f'{target.relative_to(ROOT)}: {summary["queries"]} queries, {summary["cases_done"]} of '
          f'{summary["cases_planned"]} cases')
    return list(summary['not_as_claimed'])


def main(arguments: list[str]) -> int:
    """Take the results, write the page and the numbers, check both."""
    archive, name = Path(arguments[0]), (arguments[1:] or ['h200'])[0]
    wrong = take(archive, name)
    sources = [str(path) for path in (REPORT / name, REPORT / name / ROS) if path.is_dir()]
    with tempfile.TemporaryDirectory() as figures:
        status = timebill(['report', *sources, '--predictors', str(PREDICTORS),
                           '--out', str(REPORT / f'{name}.html'), '--figures', figures])
        if (Path(figures) / FIGURE).is_file():
            shutil.copy(Path(figures) / FIGURE, REPORT / name)
    for script in (['readme_numbers.py'], ['readme_numbers.py', '--check']):
        command = [sys.executable, str(ROOT / 'tools' / script[0]), *script[1:]]
        status = subprocess.call(command) or status
    size = sum(path.stat().st_size for path in REPORT.rglob('*') if path.is_file())
    print(f'docs/report: {size / 1e6:.2f} MB')
    if size > MAX_BYTES:
        wrong.append(f'docs/report has {size} bytes, more than {MAX_BYTES}')
    for each in wrong:
        print(each, file=sys.stderr)
    return status or int(bool(wrong))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
