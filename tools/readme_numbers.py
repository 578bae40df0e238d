# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Write measured numbers into README.md and docs/experiments.md, from the committed results.

README gets what a newcomer wants to know, docs/experiments.md all tables, each between two markers.
``--check`` only tells whether they stand there (status 1 if not), which a test asks. Needs no more
than Python.
"""

from collections.abc import Callable, Iterator
import json
from pathlib import Path
import sys

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from timebill_ros.experiments.result_tables import (  # noqa: E402, I100
    by, label, OURS, OURS_LABEL, provenance, robot, Row, seconds, STRATEGIES, TABLES)
from timebill_ros.markdown import markdown_table, number, percent  # noqa: E402

REPORT = ROOT / 'docs' / 'report'
MEASUREMENTS = ROOT / 'docs' / 'measurements'
FIGURE = 'budgets-kill.png'     # beside the summaries, by take_results.py
GPU_STEPS, CPU_STEPS = 'decode-qwen2.5-7b-h200.json', 'cpu-epyc.json'
GPU_CACHED, CPU_CACHED = 8192, 512      # cached tokens of the steps that README names
BEGIN, END = '<!-- numbers: begin -->', '<!-- numbers: end -->'


def summaries(name: str) -> list[Row]:
    """Return the committed summaries of an experiment: per machine, and through the ROS action."""
    return [json.loads(path.read_text(encoding='utf-8'))
            for path in sorted(REPORT.rglob(f'{name}/summary.json'))]


def headline(summary: Row) -> Iterator[str]:
    """Yield a row per strategy and budget, what others score and ours; say where ours is behind."""
    rows = []
    for (strategy, budget_s), cells in _points(summary).items():
        own = cells.pop(OURS)
        best = max(cells.values(), key=lambda row: float(row['score']))
        scores = [cells[name]['score'] if name in cells else None for name in ('vanilla', 'paper')]
        wins = own['score'] > best['score']
        rows.append([
            f'{STRATEGIES[strategy]}, {seconds(budget_s)}', *map(_score, scores),
            f'{_score(best["score"])} ({label(best["method"])})',
            f'**{_score(own["score"])}**' if wins else _score(own['score']),
            percent(cells['vanilla']['completed'] if 'vanilla' in cells else None),
            f'{percent(own["completed"] + own["truncated"])} ({percent(own["completed"])})'])
    yield markdown_table(
        ['budget', 'vanilla', "paper's policy", 'best of all others', OURS_LABEL,
         'in time: vanilla', 'in time: ours (whole)'], rows) + '\n'
    yield from _said(summary)


def _points(summary: Row) -> dict[tuple[str, float], dict[str, Row]]:
    """Return the row of every method at every strategy and budget where ours was measured."""
    found: dict[tuple[str, float], dict[str, Row]] = {}
    for row in summary['results']['table']:
        found.setdefault((row['strategy'], row['budget_s']), {})[row['method']] = row
    return {at: cells for at, cells in found.items() if OURS in cells and len(cells) > 1}


def _score(score: float | None) -> str:
    return number(score, 3)


def _said(summary: Row) -> Iterator[str]:
    """Yield what the numbers are, how sure the differences are, and where ours is behind."""
    results = summary['results']
    asked = ', '.join(f'{max(row["n"] for row in rows)} under {STRATEGIES[strategy]}'
                      for strategy, rows in by(results['table'], 'strategy').items())
    free = results['unhurried']
    yield (f'Average score, 0 to 1, a late answer counting 0; questions: {asked}. Without a budget '
           f'an answer takes {seconds(free["median_s"])} (median) and scores {free["score"]:.3f}: '
           f'the model is small. {provenance(summary)}')
    pairs = [row for row in results['table'] if row.get('ahead') is not None]
    yield (f'On the same questions ours scores higher than another at '
           f'{sum(row["ahead"] > 0.0 for row in pairs)} of {len(pairs)} points (with the whole '
           f'95 % bootstrap interval at {sum(row["ahead_low"] > 0.0 for row in pairs)}), lower at '
           f'{sum(row["ahead"] < 0.0 for row in pairs)} (with the whole interval at '
           f'{sum(row["ahead_high"] < 0.0 for row in pairs)}).')
    behind = [f'{STRATEGIES[strategy]}, {seconds(budget_s)}: ' + ', '.join(
        f'{label(name)} {_score(row["score"])}' for name, row in cells.items()
        if name != OURS and row['ahead'] < 0.0) + f' > ours {_score(cells[OURS]["score"])}'
        for (strategy, budget_s), cells in _points(summary).items()
        if any(name != OURS and row['ahead'] < 0.0 for name, row in cells.items())]
    if behind:
        yield f'**Ours is behind** at {"; ".join(behind)}.'


def steps() -> Iterator[str]:
    """Yield what a decode step takes: a 7B shape on a GPU, the embedded model on a CPU."""
    gpu, cpu = (json.loads((MEASUREMENTS / name).read_text(encoding='utf-8'))
                for name in (GPU_STEPS, CPU_STEPS))
    of_gpu = ', '.join(
        f'{row["tier"]} {row["step_ms"]:.2f} ms ({row["ratio"]:.2f} × the time to read its bytes)'
        for row in gpu['steps'] if row['width'] == 1 and row['cached_tokens'] == GPU_CACHED)
    threads = max(row['threads'] for row in cpu['decode'])
    of_cpu = ', '.join(
        f'{row["tier"]} {row["ms"]:.1f} ms ({row["times_as_fast"]:.1f} × as fast as llama.cpp)'
        for row in cpu['decode']
        if row['threads'] == threads and row['cached_tokens'] == CPU_CACHED)
    yield (f'A decode step: {gpu["shape"]} on {gpu["device"]}, {GPU_CACHED:,} tokens cached: '
           f'{of_gpu}. {cpu["model"]} on {cpu["device"]}, {CPU_CACHED} cached: {of_cpu}. More: '
           '[GPU engine](docs/gpu-engine.md), [CPU engine](docs/cpu-engine.md).')


def readme() -> Iterator[str]:
    """Yield README's block: of runs on one device the newest; docs/experiments.md has all."""
    runs = [each for each in summaries('budgets') if not each['ros'] and not each['quick']]
    runs.sort(key=lambda each: str(each['machine']['date']))
    newest = {each['machine']['info']['device']: each for each in runs}
    for summary in newest.values():
        yield from [*headline(summary), '']
    for figure in sorted(REPORT.glob(f'*/{FIGURE}')):
        yield from [f'![Score and completion over budgets]({figure.relative_to(ROOT)})', '']
    for summary in summaries('robot'):
        yield from [*robot(summary['results']), provenance(summary), '']
    yield from steps()


def tables() -> Iterator[str]:
    """Yield the block of docs/experiments.md: every table."""
    for name, write in TABLES.items():
        for summary in summaries(name):
            yield f'**{summary["title"]}.** {provenance(summary)}'
            yield from ['', *write(summary['results'])]
            yield from (f'Left out: {each["what"]}: {each["why"]}.' for each in summary['skipped'])
            yield ''


def whole(page: Path, write: Callable[[], Iterator[str]]) -> tuple[str, str]:
    """Return a page's text as it is, and as it should be; raises ValueError: no markers."""
    text = page.read_text(encoding='utf-8')
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f'{page.name} lacks the markers {BEGIN} and {END}')
    block = '\n'.join(write()).strip() or 'No experiment has been committed yet.'
    return text, f'{before}{BEGIN}\n{block}\n{END}{after}'


def main(arguments: list[str]) -> int:
    """Rewrite the blocks, or check them."""
    status = 0
    for page, write in ((ROOT / 'README.md', readme), (ROOT / 'docs' / 'experiments.md', tables)):
        text, wanted = whole(page, write)
        if '--check' not in arguments:
            page.write_text(wanted, encoding='utf-8')
        elif wanted != text:
            print(f'the numbers in {page.name} are not those of docs/report: run '
                  'python3 tools/readme_numbers.py', file=sys.stderr)
            status = 1
    return status


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
