# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Quality and seconds over the (tier, α) grid, and which θ the planner picks at each budget."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from timebill_ros.experiments.engine_host import EngineHost, GENEROUS_S
from timebill_ros.experiments.policies import fixed, Method
from timebill_ros.experiments.recorder import Row
from timebill_ros.experiments.statistics import ahead, answers, group_by, mean, quantile
from timebill_ros.experiments.suite.budgets import (
    asked, asked_everywhere, pilot, usable_methods)
from timebill_ros.experiments.tasks import Item
from timebill_ros.experiments.workbench import Bench

TITLE = 'Quality and seconds over θ = (precision tier, eviction ratio)'
ITEMS, QUICK_ITEMS = 132, 4
ALPHAS, QUICK_ALPHAS = (0.25, 0.5, 0.75, 0.9, 0.95), (0.5, 0.95)    # 0 is in the pilot
LOWER_ALPHAS = (0.0, 0.5, 0.95)     # of the tiers below the best
LOWER_ITEMS = 36            # questions that are asked in those tiers too, and under budgets
AT_ONCE = 12                # questions whose grid and picks are measured before the next ones
SHARES, QUICK_SHARES = (0.35, 0.5, 0.75, 1.0, 1.5), (0.75,)
PICKERS = ('paper', 'joint')
TOLERATED_LOSS = 0.05       # share of the score at alpha = 0 in the best tier


def measure(bench: Bench) -> None:
    """Ask every question at every point of the grid, unhurried; some of them under budgets."""
    host = bench.host()
    quick = bench.settings.quick
    items, reference_s = pilot(bench, host, bench.items(ITEMS, QUICK_ITEMS))
    best, *lower = _tiers(bench, host)
    grid = [(best, alpha) for alpha in (QUICK_ALPHAS if quick else ALPHAS)]
    lower_grid = [(tier, alpha) for tier in lower for alpha in LOWER_ALPHAS]
    pickers = [each for each in usable_methods(bench, host) if each.name in PICKERS]
    for start in range(0, len(items), AT_ONCE):
        several = items[start:start + AT_ONCE]
        few = several if start < LOWER_ITEMS else []
        cases = [(item, *theta) for item in several for theta in grid] + [
            (item, *theta) for item in few for theta in lower_grid]
        bench.recorder.run(
            [(f'grid/{item.item_id}/{tier}/{alpha:g}', (item, tier, alpha))
             for item, tier, alpha in cases], lambda case: _at(host, *case))
        bench.recorder.run(
            [(f'pick/{item.item_id}/{share:g}/{method.name}', (item, share, reference_s, method))
             for item in few for share in (QUICK_SHARES if quick else SHARES)
             for method in pickers], lambda case: _picked(host, *case))


def _tiers(bench: Bench, host: EngineHost) -> list[str]:
    """Return the tiers that can be fixed, best first."""
    quantised = next((each for each in usable_methods(bench, host) if each.name == 'quantised'),
                     None)
    return host.info.tiers if quantised else host.info.tiers[:1]


def _at(host: EngineHost, item: Item, tier: str, alpha: float) -> Row:
    policy = fixed(alpha, '' if tier == host.info.tiers[0] else tier)
    return {'kind': 'grid', **asked(host, item, GENEROUS_S, policy)}


def _picked(host: EngineHost, item: Item, share: float, reference_s: float,
            method: Method) -> Row:
    return {'kind': 'pick', 'method': method.name, 'share': share,
            **asked(host, item, share * reference_s, method.policy)}


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the grid (of questions asked everywhere), the largest α per class, and the picks."""
    ended = [row for row in rows if row.get('kind') in ('pilot', 'grid')
             and row['timing']['n_generated'] > 0]
    grid = [{'tier': tier, 'alpha': alpha, **answers(found), **_speed(found)}
            for (tier, alpha), found in group_by(
                asked_everywhere(ended), lambda row: (row['timing']['tier'], _alpha(row))).items()]
    picks = [{'method': method, 'budget_s': quantile([row['budget_s'] for row in found], 0.5),
              'share': share, 'n': len(found), 'picked': _counts(found)}
             for (method, share), found in group_by(
                 [row for row in rows if row.get('kind') == 'pick'],
                 lambda row: (row['method'], row['share'])).items()]
    return {'grid': grid, 'harmless': _harmless(ended), 'picks': picks}


def _alpha(row: Row) -> float:
    return float(row['policy']['fixed_alpha'])


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
    """
    Return per class the largest α up to which the best tier loses at most 5 % of its score.

    ``alpha`` goes by the mean over the class, ``alpha_sure`` by the worse end of the 95 % bootstrap
    interval of the loss, question by question; None = not even α = 0, because nothing is right.
    """
    best_tier = rows[0]['timing']['tier'] if rows else ''
    found = []
    for group, of_group in group_by(
            [row for row in rows if row['timing']['tier'] == best_tier],
            lambda row: row['group']).items():
        by_alpha = group_by(of_group, _alpha)
        whole = answers(by_alpha.get(0.0, []))['score']
        tolerated = -TOLERATED_LOSS * whole
        differences = {alpha: ahead(by_alpha[alpha], by_alpha[0.0]) for alpha in sorted(by_alpha)
                       } if whole > 0.0 else {}
        found.append({
            'group': group, 'n': len({row['item'] for row in of_group}), 'score': whole,
            'alpha': _up_to(differences, 'ahead', tolerated),
            'alpha_sure': _up_to(differences, 'ahead_low', tolerated),
            **{f'loss_at_{alpha:g}': -each['ahead'] / whole
               for alpha, each in differences.items() if alpha}})
    return found


def _up_to(differences: dict[float, Row], name: str, tolerated: float) -> float | None:
    """Return the last α before the first at which more than what is tolerated gets lost."""
    largest = None
    for alpha, difference in differences.items():
        if difference[name] < tolerated:
            break
        largest = alpha
    return largest
