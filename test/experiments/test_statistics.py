# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Averages, intervals and where ours is behind."""

import pytest

from timebill_ros.budget.planner import PlannerConfig
from timebill_ros.experiments import policies, statistics
from timebill_ros.experiments.suite.budgets import summarise


def row(method: str, outcome: str, score: float, budget_s: float = 1.0) -> dict[str, object]:
    return {'kind': 'kill', 'method': method, 'budget_s': budget_s, 'outcome': outcome,
            'item': 'needle/0', 'score': score, 'elapsed_s': 0.5, 'timing': {'feasible': True}}


def test_late_answers_count_zero() -> None:
    found = statistics.answers([
        row('a', 'COMPLETED', 1.0), row('a', 'DEADLINE_MISSED', 1.0), row('a', 'TRUNCATED', 0.5),
        row('a', 'SKIPPED', 0.0)])
    assert found['score'] == pytest.approx(0.375)
    assert (found['completed'], found['truncated'], found['n']) == (0.25, 0.25, 4)
    assert found['score_low'] <= found['score'] <= found['score_high']


def test_interval_holds_the_mean_and_narrows() -> None:
    few = statistics.interval([0.0, 1.0] * 5)
    many = statistics.interval([0.0, 1.0] * 50)
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    assert statistics.interval([1.0] * 9) == (1.0, 1.0)


def test_summary_says_where_ours_is_behind() -> None:
    rows = [row('vanilla', 'COMPLETED', 1.0), row('joint', 'COMPLETED', 0.5),
            row('vanilla', 'DEADLINE_MISSED', 1.0, 0.5), row('joint', 'COMPLETED', 0.5, 0.5)]
    results = summarise(rows)
    assert len(results['table']) == 4
    loss, = results['losses']
    assert loss.startswith('kill, 1 s: vanilla 1.000 > ours 0.500')


def test_policies_name_every_field_that_another_one_sets() -> None:
    """A running engine keeps what is not named: a baseline must not inherit the one before it."""
    several = [policies.fixed(0.5, 'int4'), policies.fixed(0.0), policies.paper(5.0),
               policies.worst_case(5.0), policies.whole({'policy': 'joint'})]
    assert len({frozenset(policy) for policy in several}) == 1
    assert several[1]['fixed_tier'] == ''
    assert several[4]['worst_case_times'] is PlannerConfig().worst_case_times
