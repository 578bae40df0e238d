# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Learned factors in the server: only if asked for, from where they start, and where they stay."""

from dataclasses import replace
from pathlib import Path

import pytest

from timebill_ros.budget.planner import PlannerConfig, Planning
from timebill_ros.executor.learning import Learning, worst_decode_s
from timebill_ros.executor.messages import Finished
from timebill_ros.query import DecodeStretch, Ending, FinishReason, Outcome, QueryTiming
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import Law

LEARNED = PlannerConfig(pessimism='learned', miss_rate_target=0.1, pessimistic_factor=4.0)
RATIOS = {'n': 1000, 'quantiles': {'0.90': 2.0, '0.95': 2.5, '0.99': 6.0}}


def planning(config: PlannerConfig) -> Planning:
    return Planning(TimeEstimator(TimingCoefficients(1, 'd', 'm', 'float32', '1', (
        Law('prefill', 'constant', (0.1,)),
        Law('decode_step', 'constant', (0.01,), worst_ratio=1.5))), ''), config, 'file')


def ended(n_generated: int, decode_s: float) -> Finished:
    timing = QueryTiming(
        n_predicted=10, n_generated=n_generated, pessimistic_factor=2.5, feasible=True,
        decode=decode_s, stretches=[DecodeStretch('', 1, 50.0, n_generated - 1, decode_s)])
    return Finished('q', Ending(Outcome.COMPLETED, FinishReason.END_TOKEN), '', timing, 0)


def test_a_fixed_factor_is_left_alone(tmp_path: Path) -> None:
    learning = Learning(tmp_path, 'model', 'probe', RATIOS)
    config = PlannerConfig()
    assert learning.adjust(config) is config
    assert not learning.ended(ended(20, 0.2), planning(config))
    assert not (tmp_path / 'state').exists()


def test_it_starts_where_the_validation_set_says_and_goes_on_after_a_restart(
        tmp_path: Path) -> None:
    learning = Learning(tmp_path, 'model', 'probe', RATIOS)
    config = learning.adjust(LEARNED)
    assert config.pessimistic_factor == 2.5 and config.time_factor == 1.0
    assert learning.ended(ended(26, 1.0), planning(config))     # too long, and too slow
    later = learning.adjust(config)
    assert later.pessimistic_factor > 2.5 and later.time_factor > 1.0
    assert learning.adjust(replace(later, pessimism='fixed')).time_factor == 1.0
    again = Learning(tmp_path, 'model', 'probe', RATIOS).adjust(LEARNED)
    assert again.pessimistic_factor == pytest.approx(later.pessimistic_factor)
    assert Learning(tmp_path, 'model', 'slm', RATIOS).adjust(LEARNED).pessimistic_factor == 2.5
    assert Learning(tmp_path, 'other', '').adjust(LEARNED).pessimistic_factor == 4.0


def test_the_worst_case_of_the_steps_that_were_made(tmp_path: Path) -> None:
    timing = ended(2, 0.01).timing
    assert worst_decode_s(timing, planning(PlannerConfig())) == pytest.approx(0.015)
    assert worst_decode_s(timing, planning(PlannerConfig(time_factor=2.0))) == pytest.approx(0.03)


def test_a_full_disk_only_costs_the_memory_of_it(tmp_path: Path) -> None:
    (tmp_path / 'state').write_text('in the way')
    learning = Learning(tmp_path, 'model', 'probe', RATIOS)
    config = learning.adjust(LEARNED)
    assert learning.ended(ended(20, 0.1), planning(config))
    assert learning.adjust(config).pessimistic_factor < 2.5
