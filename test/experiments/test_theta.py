# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the θ experiment makes of its rows."""

from typing import Any

from timebill_ros.experiments.policies import fixed
from timebill_ros.experiments.suite.theta import summarise

ALPHAS = (0.0, 0.5, 0.9)


def row(group: str, number: int, tier: str, alpha: float, score: float) -> dict[str, Any]:
    return {
        'kind': 'grid' if alpha else 'pilot', 'item': f'{group}/{number}', 'group': group,
        'policy': fixed(alpha), 'outcome': 'COMPLETED', 'score': score, 'elapsed_s': 0.5,
        'timing': {'tier': tier, 'n_generated': 3, 'decode': 0.2, 'evict': None}}


def rows_of(group: str, *scores: tuple[float, float, float]) -> list[dict[str, Any]]:
    """Return rows of questions in the best tier; a score per question and α."""
    return [row(group, number, 'bf16', alpha, score) for number, each in enumerate(scores)
            for alpha, score in zip(ALPHAS, each)]


def test_largest_alpha_that_loses_at_most_five_per_cent() -> None:
    rows = [*rows_of('steady', *[(1.0, 0.96, 0.96)] * 4),
            *rows_of('fragile', *[(1.0, 1.0, 0.5)] * 4),
            *rows_of('by chance', (1.0, 0.0, 0.0), *[(0.5, 0.85, 0.0)] * 3),
            *rows_of('never right', (0.0, 0.0, 0.0))]
    found = {each['group']: each for each in summarise(rows)['harmless']}
    assert found['steady']['alpha'] == found['steady']['alpha_sure'] == 0.9
    assert found['fragile']['alpha'] == found['fragile']['alpha_sure'] == 0.5
    assert (found['by chance']['alpha'], found['by chance']['alpha_sure']) == (0.5, 0.0)
    assert found['never right']['alpha'] is None


def test_tiers_are_compared_on_the_same_questions() -> None:
    rows = [*rows_of('a', (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)), row('a', 0, 'int4', 0.5, 1.0)]
    grid = {(each['tier'], each['alpha']): each for each in summarise(rows)['grid']}
    assert grid['int4', 0.5]['n'] == grid['bf16', 0.0]['n'] == 1
    assert grid['bf16', 0.0]['score'] == 1.0
    assert grid['bf16', 0.0]['step_s'] == 0.1
