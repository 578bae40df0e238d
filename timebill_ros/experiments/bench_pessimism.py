# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
``timebill bench pessimism``: whether the learned factor keeps its target when prompts change.

Replays response lengths that were collected for a model: first its largest source of prompts, then
all others. Each query is planned by the policy "paper" with the factors learned so far, "runs" as
long as the timing laws say, with noise, and is killed at its deadline; then it is learned from
through the same code as in the server, censored lengths included. With ``--slower`` all steps take
that many times as long after the change of source, which the laws do not know of.

Rows that name no prediction (``n_predicted``) get that of a predictor that looks at nothing but
the prompt's length: the upper bucket edge of the median of its quarter, on a tenth of the rows that
is not replayed. Another tenth gives the split-conformal start.
"""

import argparse
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
import gzip
import hashlib
import json
from math import exp
from pathlib import Path
import random
from statistics import fmean, median
import time
from typing import Any

from timebill_ros.budget.pessimism import conformal_start, Pessimism, worst_length
from timebill_ros.budget.planner import plan, PlanInputs, PlannerConfig
from timebill_ros.experiments.report_file import deliver
from timebill_ros.query import FinishReason, Outcome, QueryTiming
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import Law

TARGETS = (0.01, 0.05, 0.1)
_PAPER_K = 5.0
_BUCKET = 16                # tokens
_N_PROMPT = 16384           # every query's: so long that eviction has something to save
_NOISE = 0.02               # standard deviation of the logarithm of a query's pace
_ESTIMATOR = TimeEstimator(TimingCoefficients(1, 'replay', 'replay', 'bfloat16', '1', (
    Law('prefill', 'constant', (0.5,)),
    Law('decode_step', 'affine', (1e-6, 0.004), worst_ratio=1.1, correlation=0.5),
    Law('evict', 'constant', (0.002,)), Law('overhead', 'constant', (0.001,)))))


@dataclass(frozen=True)
class Row:
    """One collected length."""

    source: str
    n_prompt: int
    n: int
    n_predicted: int = 0


@dataclass
class Tally:
    """What came of a stretch of queries."""

    beyond: int = 0         # N > N_W
    queries: int = 0
    missed: int = 0         # killed, of those whose worst case fitted
    fitted: int = 0
    alpha: float = 0.0      # summed over those

    def shares(self) -> dict[str, float]:
        """Return the shares."""
        fitted = max(1, self.fitted)
        return {'beyond': round(self.beyond / max(1, self.queries), 4),
                'missed': round(self.missed / fitted, 4),
                'mean_alpha': round(self.alpha / fitted, 3), 'queries': self.queries}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument(
        '--lengths', type=Path, required=True,
        help='JSON lines with id ("source/..."), n_prompt, n (timebill predictor collect)')
    parser.add_argument(
        '--queries', type=int, default=10000, help='replay at least so many (default 10000)')
    parser.add_argument(
        '--slower', type=float, default=1.0, metavar='F',
        help='steps after the change of source take F times as long')


def run(arguments: argparse.Namespace) -> int:
    """Replay, and print a table or one JSON object."""
    rows, capped_at = read_rows(arguments.lengths)
    fitting, calibration, replayed = split(rows)
    predict = predictor(fitting, capped_at)
    ratios = sorted(row.n / predict(row) for row in calibration)
    queries, change = order(replayed, arguments.queries)
    report: dict[str, Any] = {
        'date': time.strftime('%Y-%m-%d'), 'lengths': arguments.lengths.name,
        'queries': len(queries), 'change_at': change, 'slower': arguments.slower, 'rows': []}
    for target in TARGETS:
        start = conformal_start(
            {f'{(i + 1) / len(ratios)}': ratio for i, ratio in enumerate(ratios)}, len(ratios),
            target) or _PAPER_K
        for name, k in (('learned', start), ('fixed', start), ('fixed', _PAPER_K)):
            report['rows'].append(replay(
                queries, change, arguments.slower, predict, capped_at, target, name, k))
    deliver(report, arguments, _table)
    return 0


def read_rows(path: Path) -> tuple[list[Row], int]:
    """Read a length file; returns its rows and the cap, its longest length."""
    opened = gzip.open(path, 'rt') if path.suffix == '.gz' else open(path, encoding='utf-8')
    with opened as lines:
        found = [json.loads(line) for line in lines]
    rows = [Row(each['id'].partition('/')[0], each['n_prompt'], each['n'],
                each.get('n_predicted', 0)) for each in found if 'n' in each]
    if len(rows) < 100:
        raise SystemExit(f'{path} has {len(rows)} lengths; a replay needs at least 100')
    return rows, max(row.n for row in rows)


def split(rows: list[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Return a tenth to fit on, a tenth to calibrate on, and the rest, by hash."""
    parts: tuple[list[Row], list[Row], list[Row]] = ([], [], [])
    for number, row in enumerate(rows):
        digit = hashlib.sha256(f'{row.source} {number}'.encode()).digest()[0] % 10
        parts[min(2, digit)].append(row)
    return parts


def predictor(rows: list[Row], cap: int) -> Callable[[Row], int]:
    """Return row -> N_hat: what the row says, else the median of its quarter of prompt lengths."""
    lengths = sorted(row.n_prompt for row in rows)
    edges = [lengths[len(lengths) * quarter // 4] for quarter in (1, 2, 3)]
    groups: list[list[int]] = [[], [], [], []]
    for row in rows:
        groups[bisect_right(edges, row.n_prompt)].append(row.n)
    medians = [median(group or [cap]) for group in groups]

    def predict(row: Row) -> int:
        if row.n_predicted:
            return row.n_predicted
        middle = medians[bisect_right(edges, row.n_prompt)]
        return min(cap, -(-int(middle) // _BUCKET) * _BUCKET)

    return predict


def order(rows: list[Row], least: int) -> tuple[list[Row], int]:
    """Return the queries, and where the second half, of other sources, begins."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.source] = counts.get(row.source, 0) + 1
    largest = max(counts, key=lambda source: counts[source])
    drawn = random.Random(1)
    halves = []
    for half in ([row for row in rows if row.source == largest],
                 [row for row in rows if row.source != largest]):
        queries: list[Row] = []
        while len(queries) < least / 2:
            queries += drawn.sample(half, len(half))
        halves.append(queries)
    return halves[0] + halves[1], len(halves[0])


def replay(
        queries: list[Row], change: int, slower: float, predict: Callable[[Row], int], cap: int,
        target: float, name: str, start: float) -> dict[str, Any]:
    """Run all queries with a fixed or a learned factor and return what came of them."""
    drawn = random.Random(2)
    state = Pessimism.new(target, start)
    halves, factors = (Tally(), Tally()), []
    for number, row in enumerate(queries):
        config = PlannerConfig('paper', pessimistic_factor=start)
        if name == 'learned':
            config = state.adjust(config)
        tally, pace = halves[number >= change], exp(drawn.gauss(0.0, _NOISE))
        if number >= change:
            pace *= slower
        factors.append(config.pessimistic_factor)
        budget_s = drawn.uniform(0.5, 1.3) * _ESTIMATOR.decode_s(_N_PROMPT, cap, worst=True)
        _one_query(row, predict(row), cap, budget_s, pace, config, state, tally)
    both = Tally(*(getattr(halves[0], name) + getattr(halves[1], name)
                   for name in ('beyond', 'queries', 'missed', 'fitted', 'alpha')))
    return {'target': target, 'factor': name, 'k_start': round(start, 2),
            'k_mean': [round(fmean(factors[:change]), 2), round(fmean(factors[change:]), 2)],
            'k_end': round(factors[-1], 2),
            'time_factor_end': round(state.time.factor if name == 'learned' else 1.0, 3),
            'all': both.shares(), 'before': halves[0].shares(), 'after': halves[1].shares()}


def _one_query(
        row: Row, n_predicted: int, cap: int, budget_s: float, pace: float, config: PlannerConfig,
        state: Pessimism, tally: Tally) -> None:
    """Plan it, let it run until it ends or is killed, and learn from what the server would see."""
    made = plan(PlanInputs(_N_PROMPT, cap, budget_s, 0.95, n_predicted), _ESTIMATOR, config)
    left_s = budget_s - (_ESTIMATOR.evict_s(1) if made.alpha > 0.0 else 0.0)
    n_done = row.n
    if pace * _ESTIMATOR.decode_s(made.n_kept, row.n - 1) > left_s:
        low, high = 0, row.n - 1        # steps that are done when it is killed
        while high - low > 1:
            middle = (low + high) // 2
            done = pace * _ESTIMATOR.decode_s(made.n_kept, middle) <= left_s
            low, high = (middle, high) if done else (low, middle)
        n_done = low + 1
    killed = n_done < row.n
    tally.queries += 1
    tally.beyond += row.n > worst_length(n_predicted, config.pessimistic_factor, cap)
    if made.feasible:
        tally.fitted += 1
        tally.missed += killed
        tally.alpha += made.alpha
    timing = QueryTiming(
        n_predicted=n_predicted, n_generated=n_done, feasible=made.feasible,
        pessimistic_factor=config.pessimistic_factor,
        decode=pace * _ESTIMATOR.decode_s(made.n_kept, n_done - 1))
    state.observe(
        timing, Outcome.DEADLINE_MISSED if killed else Outcome.COMPLETED,
        FinishReason.NONE if killed else FinishReason.END_TOKEN,
        config.time_factor * _ESTIMATOR.decode_s(made.n_kept, n_done - 1, worst=True))


def _table(report: dict[str, Any]) -> str:
    lines = [
        f'{report["date"]}, {report["queries"]} queries of {report["lengths"]}, other sources '
        f'from query {report["change_at"]} on, steps then {report["slower"]:g} x as long',
        f'{"delta":>6} {"k":8}{"start":>6}{"mean before, after":>20}{"N > N_W":>9}{"before":>8}'
        f'{"after":>8}{"missed":>8}{"before":>8}{"after":>8}{"alpha":>7}']
    for row in report['rows']:
        k_before, k_after = row['k_mean']
        lines.append(
            f'{row["target"]:6.0%} {row["factor"]:8}{row["k_start"]:6.2f}'
            f'{k_before:12.2f}{k_after:8.2f}'
            + ''.join(f'{row[part]["beyond"]:{width}.1%}' for part, width in (
                ('all', 9), ('before', 8), ('after', 8)))
            + ''.join(f'{row[part]["missed"]:8.1%}' for part in ('all', 'before', 'after'))
            + f'{row["all"]["mean_alpha"]:7.2f}')
    return '\n'.join(lines)
