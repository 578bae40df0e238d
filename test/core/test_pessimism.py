# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The learned pessimistic factor: its long-run rate under drift, censoring, and its state file."""

from dataclasses import replace
import json
from math import exp, nan
from pathlib import Path
import random

import pytest

from timebill_ros.budget.pessimism import (
    conformal_start, ETA, K_MAX, length_error, load_pessimism, Pessimism, QuantileTrack)
from timebill_ros.budget.planner import PlannerConfig
from timebill_ros.query import FinishReason, Outcome, QueryTiming

DONE = QueryTiming(
    n_predicted=100, n_generated=150, pessimistic_factor=2.0, feasible=True, decode=1.0)


@pytest.mark.parametrize('target', [0.01, 0.05, 0.1])
def test_the_long_run_rate_holds_under_drift(target: float) -> None:
    rng = random.Random(5)
    track = QuantileTrack(target, 5.0, K_MAX)
    half_errors = []
    for half, spread in ((0, 0.4), (1, 1.2)):           # log-normal N / N_hat; then a wider one
        before = track.errors
        for _ in range(6000):
            track.observe(exp(rng.gauss(0.0, spread)) > track.factor)
        half_errors.append((track.errors - before) / 6000)
    bound = (4.605 + ETA) / (ETA * track.count)         # log 100 = 4.605
    assert abs(track.errors / track.count - target) <= bound
    assert abs(track.errors / track.count - target) < 0.005
    assert all(abs(share - target) < 0.01 for share in half_errors)


def test_adversaries_cannot_break_the_bound_but_at_a_limit() -> None:
    track = QuantileTrack(0.1, 5.0, K_MAX)
    for count in range(5000):
        track.observe(track.factor < 3.0 if count % 700 < 350 else track.factor < 30.0)
    assert abs(track.errors / track.count - 0.1) <= (4.605 + ETA) / (ETA * track.count)
    for _ in range(2000):
        track.observe(False)
    assert track.factor == 1.0                          # never planned for less than predicted


@pytest.mark.parametrize('changes, outcome, finish, expected', [
    ({}, Outcome.COMPLETED, FinishReason.END_TOKEN, False),
    ({'n_generated': 201}, Outcome.COMPLETED, FinishReason.END_TOKEN, True),
    ({}, Outcome.DEADLINE_MISSED, FinishReason.NONE, True),             # killed: censored
    ({}, Outcome.DEADLINE_MISSED, FinishReason.END_TOKEN, False),       # late, but whole
    ({}, Outcome.TRUNCATED, FinishReason.PLANNED_CAP, True),
    ({}, Outcome.CANCELED, FinishReason.NONE, None),
    ({'n_generated': 201}, Outcome.CANCELED, FinishReason.NONE, True),
    ({'feasible': False}, Outcome.DEADLINE_MISSED, FinishReason.NONE, None),
    ({'feasible': False}, Outcome.COMPLETED, FinishReason.END_TOKEN, None),
    ({'n_predicted': 0}, Outcome.COMPLETED, FinishReason.END_TOKEN, None),
    ({'n_generated': 0}, Outcome.DEADLINE_MISSED, FinishReason.NONE, None)])
def test_what_counts_as_an_error_of_length(
        changes: dict, outcome: Outcome, finish: FinishReason, expected: bool | None) -> None:
    assert length_error(replace(DONE, **changes), outcome, finish) is expected


def test_length_and_time_are_followed_apart() -> None:
    learned = Pessimism.new(0.1, 5.0)
    learned.observe(DONE, Outcome.COMPLETED, FinishReason.END_TOKEN, worst_s=0.5)
    assert learned.length.factor < 5.0 and learned.time.factor > 1.0
    learned.observe(
        replace(DONE, decode=nan, n_generated=1), Outcome.DEADLINE_MISSED, FinishReason.NONE, 0.5)
    assert (learned.length.count, learned.time.count) == (2, 1)
    config = learned.adjust(PlannerConfig('joint', least_gain=0.2))
    assert config.pessimistic_factor == learned.length.factor
    assert config.time_factor == learned.time.factor and config.least_gain == 0.2


def test_the_conformal_start_takes_the_next_larger_quantile() -> None:
    ratios = {'0.90': 1.8, '0.95': 2.5, '0.99': 4.0}
    assert conformal_start(ratios, 1000, 0.1) == 2.5        # 901 of 1000 is more than 0.90
    assert conformal_start(ratios, 1000, 0.06) == 2.5
    assert conformal_start(ratios, 50, 0.01) is None        # too few rows for one in a hundred
    assert conformal_start({'0.99': 0.7}, 1000, 0.1) == 1.0
    assert conformal_start({}, 0, 0.1) is None


def test_state_survives_a_restart_and_damage_is_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / 'state' / 'pessimism.json'
    learned = load_pessimism(path, 0.05, 3.0, 'model')
    assert learned.length.factor == 3.0 and not learned.notes
    learned.length.observe(True)
    learned.save(path)
    assert load_pessimism(path, 0.05, 3.0, 'model') == learned
    assert load_pessimism(path, 0.05, 3.0, 'another model').length.factor == 3.0
    assert load_pessimism(path, 0.10, 3.0, 'model').length.factor == 3.0
    assert [each.name for each in path.parent.iterdir()] == ['pessimism.json']
    body = json.loads(path.read_text(encoding='utf-8'))
    for damage in ('{', '[]', json.dumps({**body, 'length': {'target': 2}}),
                   json.dumps({**body, 'format': 9})):
        path.write_text(damage, encoding='utf-8')
        again = load_pessimism(path, 0.05, 3.0, 'model')
        assert again.length.factor == 3.0 and 'kept aside' in again.notes[0]
        assert not path.exists() and path.with_name('pessimism.json.bad').exists()
