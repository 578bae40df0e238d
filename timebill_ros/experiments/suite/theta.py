# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Quality and seconds over the (tier, α) grid, and which θ the planner picks at each budget."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from timebill_ros.experiments.engine_host import EngineHost, GENEROUS_S
from timebill_ros.experiments.policies import fixed, Method
from timebill_ros.experiments.recorder import Row
from timebill_ros.experiments.statistics import answers, group_by, mean, quantile
from timebill_ros.experiments.suite.budgets import asked, usable_methods
from timebill_ros.experiments.tasks import Item
from timebill_ros.experiments.workbench import Bench

TITLE = 'Quality and seconds over θ = (precision tier, eviction ratio)'
ITEMS, QUICK_ITEMS = 60, 4
ALPHAS, QUICK_ALPHAS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95), (0.0, 0.5, 0.95)
SHARES, QUICK_SHARES = (0.35, 0.5, 0.75, 1.0, 1.5), (0.75,)
PICKERS = ('paper', 'joint')
TOLERATED_LOSS = 0.05       # share of the score at alpha = 0 in the best tier


def measure(bench: Bench) -> None:
    """Ask every question at every point of the grid, unhurried; then under budgets."""
    host = bench.host()
    quick = bench.settings.quick
    items = bench.items(ITEMS, QUICK_ITEMS)
    tiers = _tiers(bench, host)
    grid = [(f'grid/{item.item_id}/{tier}/{alpha:g}', (item, tier, alpha))
            for item in items for alpha in (QUICK_ALPHAS if quick else ALPHAS) for tier in tiers]
    bench.recorder.run(grid, lambda case: _at(host, *case))
    reference_s = quantile([row['elapsed_s'] for row in bench.recorder.rows
                            if row.get('kind') == 'grid' and row['alpha'] == 0.0], 0.5)
    pickers = [each for each in usable_methods(bench, host) if each.name in PICKERS]
    picks = [(f'pick/{item.item_id}/{share:g}/{method.name}', (item, share, reference_s, method))
             for item in items for share in (QUICK_SHARES if quick else SHARES)
             for method in pickers]
    bench.recorder.run(picks, lambda case: _picked(host, *case))


def _tiers(bench: Bench, host: EngineHost) -> list[str]:
    """Return the tiers that can be fixed, best first."""
    quantised = next((each for each in usable_methods(bench, host) if each.name == 'quantised'),
                     None)
    return host.info.tiers if quantised else host.info.tiers[:1]


def _at(host: EngineHost, item: Item, tier: str, alpha: float) -> Row:
    host.use(fixed(alpha, '' if tier == host.info.tiers[0] else tier))
    return {'kind': 'grid', 'tier': tier, 'alpha': alpha, **asked(host, item, GENEROUS_S)}


def _picked(host: EngineHost, item: Item, share: float, reference_s: float,
            method: Method) -> Row:
    host.use(method.policy)
    return {'kind': 'pick', 'method': method.name, 'share': share,
            **asked(host, item, share * reference_s)}


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the grid, the largest harmless α of every class, and the picks."""
    ended = [row for row in rows if row.get('kind') == 'grid' and row['timing']['n_generated'] > 0]
    grid = [{'tier': tier, 'alpha': alpha, **answers(found), **_speed(found)}
            for (tier, alpha), found in group_by(
                ended, lambda row: (row['timing']['tier'], row['alpha'])).items()]
    picks = [{'method': method, 'budget_s': quantile([row['budget_s'] for row in found], 0.5),
              'share': share, 'n': len(found), 'picked': _counts(found)}
             for (method, share), found in group_by(
                 [row for row in rows if row.get('kind') == 'pick'],
                 lambda row: (row['method'], row['share'])).items()]
    return {'grid': grid, 'harmless': _harmless(ended), 'picks': picks}


def _speed(rows: Sequence[Row]) -> dict[str, float]:
    """Return seconds of eviction, and of a decode step."""
    steps = [row['timing']['decode'] / (row['timing']['n_generated'] - 1) for row in rows
             if row['timing']['n_generated'] > 1 and row['timing']['decode'] is not None]
    evictions = [row['timing']['evict'] for row in rows if row['timing']['evict'] is not None]
    return {'step_s': mean(steps), 'evict_s': mean(evictions)}


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    """Return how often each θ was picked; queries that ended before the plan are left out."""
    planned = [row['timing'] for row in rows if row['timing']['n_generated'] > 0]
    return dict(Counter(f'{timing["tier"]}, α {timing["alpha"]:.1f}' for timing in planned))


def _harmless(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return per class the largest α up to which the best tier loses at most 5 % of its score."""
    best_tier = rows[0]['timing']['tier'] if rows else ''
    found = []
    for group, of_group in group_by(
            [row for row in rows if row['timing']['tier'] == best_tier],
            lambda row: row['group']).items():
        scores = {alpha: mean([row['score'] for row in same]) for alpha, same in group_by(
            of_group, lambda row: row['alpha']).items()}
        whole = scores.get(0.0, 0.0)
        largest: float | None = None
        for alpha in sorted(scores):
            if whole <= 0.0 or scores[alpha] < (1.0 - TOLERATED_LOSS) * whole:
                break
            largest = alpha
        found.append({'group': group, 'score': whole, 'alpha': largest,
                      'n': len({row['item'] for row in of_group})})
    return found
