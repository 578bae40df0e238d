# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Timing laws and predicted times against measured ones (the paper's Fig. 5 and 6)."""

from collections.abc import Sequence
from typing import Any

from timebill_ros.experiments.engine_host import EngineHost, GENEROUS_S
from timebill_ros.experiments.policies import fixed, PAPER_K, worst_case
from timebill_ros.experiments.recorder import Row
from timebill_ros.experiments.statistics import mean
from timebill_ros.experiments.suite.budgets import asked
from timebill_ros.experiments.tasks import Item
from timebill_ros.experiments.workbench import Bench

TITLE = 'Predicted times against measured ones'
ITEMS, QUICK_ITEMS = 72, 6
ALPHAS = (0.0, 0.5, 0.9)
STAGES = ('prefill', 'evict', 'decode', 'total')


def measure(bench: Bench) -> None:
    """Ask questions of all lengths, unhurried, with and without eviction, and under k = 5."""
    host = bench.host()
    laws = {'kind': 'laws', 'laws': host.ready.coefficients}
    bench.recorder.run([('laws', laws)], lambda row: row)
    items = bench.items(ITEMS, QUICK_ITEMS)
    plain = [(f'fixed/{item.item_id}', (item, 'fixed', fixed(ALPHAS[number % len(ALPHAS)])))
             for number, item in enumerate(items)]
    under_k = [(f'k/{item.item_id}', (item, 'k', worst_case(PAPER_K))) for item in items]
    bench.recorder.run([*plain, *under_k], lambda case: _timed(host, *case))


def _timed(host: EngineHost, item: Item, kind: str, policy: dict[str, Any]) -> Row:
    return {'kind': kind, **asked(host, item, GENEROUS_S, policy)}


def pairs(rows: Sequence[Row], stage: str) -> list[tuple[float, float]]:
    """Return (predicted, measured) seconds of a stage; decoding at the length that came."""
    found = []
    for row in rows:
        timing = row.get('timing') or {}
        predicted, measured = timing.get(f'predicted_{stage}'), timing.get(stage)
        if stage == 'decode':
            predicted = timing.get('predicted_decode_realised')
        elif stage == 'total':
            predicted, measured = whole(timing)
        if predicted and measured:
            found.append((predicted, measured))
    return found


def whole(timing: dict[str, Any]) -> tuple[float, float]:
    """Return what prefill, eviction and decoding took together, predicted and measured."""
    predicted = [timing.get(name) or 0.0 for name in (
        'predicted_prefill', 'predicted_evict', 'predicted_decode_realised')]
    measured = [timing.get(name) or 0.0 for name in ('prefill', 'evict', 'decode')]
    return sum(predicted), sum(measured)


def worst_cases(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Return (worst case, actual) seconds from arrival to the end, of answers under k = 5."""
    return [(row['timing']['predicted_total_worst'], row['elapsed_s']) for row in rows
            if row.get('kind') == 'k' and (row.get('timing') or {}).get('predicted_total_worst')]


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the errors of every stage, and how often the worst case held."""
    errors = {}
    for stage in STAGES:
        found = pairs(rows, stage)
        errors[stage] = {'n': len(found), 'mape': mean(
            [abs(predicted - measured) / measured for predicted, measured in found])}
    bounds = worst_cases(rows)
    predictors = {row['timing']['predictor'] for row in rows if row.get('kind') == 'k'}
    laws = next((row['laws']['laws'] for row in rows if row.get('kind') == 'laws'), [])
    return {
        'errors': errors, 'predictors': sorted(predictors),
        'worst_case': {'k': PAPER_K, 'n': len(bounds), 'held': mean(
            [float(actual <= worst) for worst, actual in bounds])},
        'laws': [{name: law[name] for name in ('law', 'tier', 'form', 'mape', 'samples')}
                 for law in laws]}
