# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The plan: what each policy decides, that it is pure, and what admission says before any work."""

from dataclasses import replace
import math
import random

import pytest

from timebill_ros.budget.admission import cheapest_plan, needs, refusal_message
from timebill_ros.budget.pessimism import worst_length
from timebill_ros.budget.planner import Plan, plan, PlanInputs, PlannerConfig
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import Law

ESTIMATOR = TimeEstimator(TimingCoefficients(
    stamp_ns=1, device='d', model='m', dtype='float32', engine_version='1', laws=(
        Law('prefill', 'quadratic', (1e-8, 1e-3, 0.01), worst_ratio=1.2),
        Law('decode_step', 'affine', (1e-5, 0.03), worst_ratio=1.5, correlation=0.1),
        Law('evict', 'affine', (1e-6, 0.002), worst_ratio=1.1),
        Law('overhead', 'affine', (1e-4, 0.001)))))
PAPER = PlannerConfig('paper')
EXPECTED = PlannerConfig('paper', worst_case_times=False)


def inputs(**changes: float) -> PlanInputs:
    return replace(PlanInputs(n_prompt=2000, cap=200, budget_left_s=1e9, alpha_max=0.95), **changes)


def test_a_generous_budget_evicts_nothing() -> None:
    made = plan(inputs(), ESTIMATOR, PAPER)
    assert made.feasible and made.alpha == 0.0 and made.n_kept == 2000
    assert made.n_worst == made.cap == 200 and made.predicted_evict_s == 0.0


def test_a_tight_budget_is_filled_but_not_exceeded() -> None:
    whole = plan(inputs(), ESTIMATOR, PAPER)
    least = cheapest_plan(inputs(), ESTIMATOR, PAPER)
    between = 0.5 * (whole.predicted_rest_worst_s + least.predicted_rest_worst_s)
    made = plan(inputs(budget_left_s=between), ESTIMATOR, PAPER)
    assert made.feasible and 0.0 < made.alpha < 0.95
    assert between - 0.01 < made.predicted_rest_worst_s <= between
    assert made.predicted_evict_s == pytest.approx(1.1 * 0.004)


def test_what_cannot_fit_is_clipped_and_said_to_be_infeasible() -> None:
    made = plan(inputs(budget_left_s=1.0), ESTIMATOR, PAPER)
    assert not made.feasible and made.alpha == 0.95 and made.n_kept == 100
    assert made.alpha_raw > 0.95 and made.predicted_rest_worst_s > 1.0


def test_feasible_says_exactly_whether_the_worst_case_fits() -> None:
    rng = random.Random(4)
    answers = set()
    for _ in range(500):
        asked = inputs(
            n_prompt=rng.randrange(0, 4000), cap=rng.randrange(1, 500),
            budget_left_s=rng.uniform(0, 20), alpha_max=rng.uniform(0, 0.95),
            n_predicted=rng.choice([0, rng.randrange(1, 200)]))
        for config in (PAPER, PlannerConfig('fixed', 0.5), EXPECTED):
            made = plan(asked, ESTIMATOR, config)
            # By text, because NaN (no alpha asked for) does not equal itself.
            assert repr(made) == repr(plan(asked, ESTIMATOR, config))
            left = asked.budget_left_s - made.predicted_rest_worst_s
            assert made.feasible == (left >= 0.0) or abs(left) < 1e-9
            answers.add((config.policy, made.feasible))
    assert len(answers) == 4


def test_more_budget_never_evicts_more() -> None:
    plans = [plan(inputs(budget_left_s=0.1 * i), ESTIMATOR, PAPER) for i in range(1, 200)]
    assert [p.alpha for p in plans] == sorted((p.alpha for p in plans), reverse=True)


def test_worst_case_times_are_longer_than_the_papers_expected_ones() -> None:
    expected = plan(inputs(), ESTIMATOR, PlannerConfig('paper', worst_case_times=False))
    worst = plan(inputs(), ESTIMATOR, PAPER)
    assert expected.predicted_decode_worst_s == pytest.approx(ESTIMATOR.decode_s(2000, 199))
    ratio = worst.predicted_decode_worst_s / expected.predicted_decode_worst_s
    assert 1.15 < ratio < 1.2       # 1 + 0.5 * sqrt((1 + 198 * 0.1) / 199), far from 1.5


def test_fixed_evicts_its_share_but_never_more_than_the_client_allows() -> None:
    config = PlannerConfig('fixed', fixed_alpha=0.5)
    assert plan(inputs(), ESTIMATOR, config).n_kept == 1000
    assert plan(inputs(alpha_max=0.25), ESTIMATOR, config).n_kept == 1500
    assert not plan(inputs(budget_left_s=0.1), ESTIMATOR, config).feasible


def test_with_a_prediction_the_worst_case_is_k_times_it() -> None:
    made: Plan = plan(inputs(n_predicted=10), ESTIMATOR, replace(PAPER, pessimistic_factor=3.0))
    assert made.n_worst == 30 and made.cap == 200
    assert made.predicted_decode_s == pytest.approx(ESTIMATOR.decode_s(2000, 9))
    assert [worst_length(n, 5.0, 100) for n in (0, 1, 10, 20, 50)] == [100, 5, 50, 100, 100]
    assert worst_length(3, 1.5, 100) == 5
    assert worst_length(160, 1.1, 512) == 176       # and not 177: 1.1 * 160 is a little more


@pytest.mark.parametrize('values, named', [
    ({'policy': 'jiont'}, 'policy'), ({'fixed_alpha': 0.96}, 'fixed_alpha'),
    ({'fixed_alpha': math.nan}, 'fixed_alpha'),
    ({'pessimistic_factor': 0.5}, 'pessimistic_factor'), ({'k': 5}, 'k')])
def test_a_wrong_parameter_is_refused_by_name(values: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        PlannerConfig.from_dict(values)


def test_admission_counts_everything_at_its_cheapest() -> None:
    need = needs(inputs(), ESTIMATOR, PAPER, chunk_tokens=256)
    assert need.least_s == pytest.approx(ESTIMATOR.prefill_s(2000) + 0.0011)
    assert need.prefill_worst_s == pytest.approx(1.2 * ESTIMATOR.prefill_s(2000))
    assert need.cheapest.alpha == 0.95
    rest_s = cheapest_plan(inputs(), ESTIMATOR, PAPER).predicted_rest_worst_s
    assert need.worst_s == pytest.approx(need.prefill_worst_s + rest_s)
    last_chunk_s = ESTIMATOR.prefill_s(2000) - ESTIMATOR.prefill_s(1744)
    assert need.unit_s == pytest.approx(1.2 * last_chunk_s)


def test_the_refusal_names_a_budget_that_does() -> None:
    need = needs(inputs(), ESTIMATOR, PAPER, chunk_tokens=256)
    text = refusal_message(need, True, waiting_s=1.0, allowance_s=2.0, margin_s=0.02)
    assert '2.000 s' in text and '1.00 s of waiting' in text and '0.020 s for delivery' in text
    enough = float(text.split('at least ')[1].split(' s')[0])
    assert 0.0 <= enough - (1.0 + need.worst_s + 0.02) <= 0.01
