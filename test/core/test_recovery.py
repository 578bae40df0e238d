# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Steps right behind a prompt take longer: the law, its fit, and the plans that count on it."""

import numpy as np
import pytest

from timebill_ros.budget.planner import plan, PlanInputs, PlannerConfig
from timebill_ros.query import DecodeStretch, QueryTiming
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator, worst_factor
from timebill_ros.time_estimator.fit import fit_law, Sample
from timebill_ros.time_estimator.laws import (
    AFFINE, Behind, DECODE_STEP, EVICT, Law, PREFILL, RECOVERY, SATURATING)
from timebill_ros.time_estimator.query_samples import samples_of
from timebill_ros.time_estimator.recovery import fit_recoveries, KNOTS, settled
from timebill_ros.time_estimator.tracking import DriftTracker

TRUE = Law(RECOVERY, SATURATING, (1.5e-4, 1e-3, 1.9e-3, 2.2e-3), (3000.0, *KNOTS), tier='int4')
STEP = Law(DECODE_STEP, AFFINE, (2e-8, 1.5e-3), tier='int4', worst_ratio=1.05, correlation=0.2)
LAWS = (Law(PREFILL, AFFINE, (2e-5, 5e-3)), STEP, TRUE, Law(EVICT, AFFINE, (1e-8, 3e-4)))
BASE = TimingCoefficients(1, 'gpu', 'model', 'bfloat16', '1', LAWS)
ESTIMATOR = TimeEstimator(BASE, 'int4')


def test_it_is_whole_behind_a_long_prompt_and_nothing_behind_a_short_one() -> None:
    assert TRUE.behind(Behind(6000), 8) == pytest.approx(1.5e-4 + 1e-3)
    assert TRUE.behind(Behind(3000), 1000) == pytest.approx(1.5e-4 + 2.2e-3)
    assert TRUE.behind(Behind(2250), 1000) == pytest.approx(1.5e-4 + 0.5 * 2.2e-3)
    assert TRUE.behind(Behind(1500), 1000) == pytest.approx(1.5e-4)     # setting up
    assert TRUE.behind(Behind(6000), 0) == 0.0
    assert TRUE.behind(Behind(6000, 48), 10) == 0.0


def test_parts_of_a_response_add_up() -> None:
    for n_prompt in (100, 2000, 2500, 9000):
        parts = sum(TRUE.behind(Behind(n_prompt, done), 7) for done in range(0, 70, 7))
        assert parts == pytest.approx(TRUE.behind(Behind(n_prompt), 70))


def test_without_such_a_law_nothing_comes_on_top() -> None:
    bare = TimeEstimator(TimingCoefficients(1, '', '', '', '', LAWS[:2]), 'int4')
    assert bare.decode_s(100, 9, behind=Behind(9000)) == bare.decode_s(100, 9)


@pytest.mark.parametrize('coefficients, knots', [
    ((1e-4,), (3000.0,)), ((1e-4, 1e-3), (3000.0, 8.0, 16.0)),
    ((1e-4, 2e-3, 1e-3), (9.0, 1.0, 2.0)),
    ((-1e-4, 1e-3), (3000.0, 8.0)), ((1e-4, 1e-3), (0.0, 8.0)), ((1e-4, 1e-3), (3000.0, 0.5))])
def test_numbers_that_make_no_law_are_refused(
        coefficients: tuple[float, ...], knots: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match='recovery: '):
        Law(RECOVERY, SATURATING, coefficients, knots)


def test_it_survives_being_stored() -> None:
    assert Law.from_dict(TRUE.to_dict()) == TRUE


def measured(steps: int, noise: float = 0.003) -> list[Sample]:
    """Return steps behind prompts as a profile measures them."""
    rng, samples = np.random.default_rng(4), []
    lengths = [int(n) for n in np.geomspace(16, 32000, 14)] * 2
    for run, n in enumerate(lengths, 1):
        prefilled = min(n, 8192)
        for number in range(1, steps + 1):
            true_s = STEP.seconds(n + number - 1) + TRUE.behind(Behind(prefilled, number - 1), 1)
            samples.append(Sample(
                DECODE_STEP, n + number - 1, true_s * (1.0 + noise * rng.normal()), tier='int4',
                run=run, point=n, step=number, prefilled=prefilled))
    return samples


def test_the_fit_tells_settled_steps_from_those_behind_a_prompt() -> None:
    samples = measured(64)
    recoveries = fit_recoveries(samples)
    found = recoveries['int4']
    for n_prompt in (100, 1000, 4000, 8000):
        for steps in (1, 8, 30, 100):
            assert found.behind(Behind(n_prompt), steps) == pytest.approx(
                TRUE.behind(Behind(n_prompt), steps), abs=2e-4)
    step = fit_law(DECODE_STEP, settled(samples, recoveries), 'int4')
    together = TimeEstimator(
        TimingCoefficients(1, '', '', '', '', (LAWS[0], step, found)), 'int4')
    for n_prompt in (60, 700, 5000, 8000):
        for steps in (7, 20, 63):
            true_s = STEP.sum_steps(n_prompt, steps) + TRUE.behind(Behind(n_prompt), steps)
            assert together.decode_s(n_prompt, steps, behind=Behind(n_prompt)) == pytest.approx(
                true_s, rel=0.006)
    # what one law of all steps makes of it
    mean = fit_law(DECODE_STEP, samples, 'int4')
    true_s = STEP.sum_steps(8000, 7) + TRUE.behind(Behind(8000), 7)
    assert mean.sum_steps(8000, 7) < 0.97 * true_s


def test_too_few_steps_in_a_row_say_nothing_and_the_first_of_a_response_is_left_out() -> None:
    samples = measured(9)
    assert fit_recoveries(samples) == {}
    assert {each.step for each in settled(samples, {})} == set(range(2, 10))


def test_a_jump_between_two_lengths_is_no_slope() -> None:
    rng, samples = np.random.default_rng(2), []
    for run, n in enumerate([int(n) for n in np.geomspace(16, 32000, 14)] * 3, 1):
        for number in range(48):
            true_s = 1.4e-3 + 2e-8 * (n + number) + (8e-5 if n + number > 128 else 0.0)
            samples.append(Sample(DECODE_STEP, n + number, true_s * (1 + 0.002 * rng.normal()),
                                  run=run, point=n))
    law = fit_law(DECODE_STEP, samples)
    assert law.seconds(127) == pytest.approx(1.4e-3, rel=0.006)
    assert law.seconds(131) == pytest.approx(1.48e-3, rel=0.006)


def test_a_plan_pays_for_it_before_it_decodes() -> None:
    inputs = PlanInputs(8000, 60, 0.0, 0.95)
    for policy in ('paper', 'joint'):
        config = PlannerConfig(policy=policy, least_gain=0.0)
        without = TimeEstimator(BASE.with_laws(RECOVERY, []), 'int4')
        for budget_s in (0.088, 0.09, 0.092, 0.095, 0.1):
            at = PlanInputs(8000, 60, budget_s, 0.95)
            made, bare = (plan(at, each, config) for each in (ESTIMATOR, without))
            steps = made.n_worst - 1
            whole_s = worst_factor(STEP, steps) * (
                STEP.sum_steps(made.n_kept, steps) + TRUE.behind(Behind(8000), steps))
            assert made.predicted_decode_worst_s == pytest.approx(whole_s)
            assert made.n_worst < 60 or made.feasible == (
                made.predicted_rest_worst_s <= budget_s)
            assert (made.n_worst, made.n_kept) <= (bare.n_worst, bare.n_kept)
    assert plan(inputs, ESTIMATOR, PlannerConfig()).feasible is False


def test_several_sequences_together_pay_it_once() -> None:
    extra_s = ESTIMATOR.decode_s(100, 9, width=2, behind=Behind(9000)) - ESTIMATOR.decode_s(
        100, 9, width=2)
    assert extra_s == pytest.approx(TRUE.behind(Behind(9000), 9))


def test_a_record_is_predicted_where_its_steps_lay() -> None:
    timing = QueryTiming(
        n_prompt=9000, n_kept=9000, n_generated=21, tier='int4', stretches=[
            DecodeStretch('int4', 1, 9000.0, 12, 0.021),
            DecodeStretch('int4', 1, 9012.0, 8, 0.013)])
    expected_s = STEP.sum_steps(9000, 20) + TRUE.behind(Behind(9000), 20)
    assert ESTIMATOR.decoded_s(timing) == pytest.approx(expected_s)
    sample, = (each for each in samples_of(timing) if each.law == DECODE_STEP)
    assert sample.seconds(BASE) == pytest.approx(expected_s)
    assert sample.worst_s(BASE) == pytest.approx(expected_s * worst_factor(STEP, 20))


def test_a_machine_that_became_slower_is_slower_here_too() -> None:
    tracker = DriftTracker(BASE)
    for _ in range(12):
        taken_s = 1.5 * (STEP.sum_steps(9000, 20) + TRUE.behind(Behind(9000), 20))
        tracker.observe(QueryTiming(
            n_prompt=9000, n_kept=9000, n_generated=21, tier='int4',
            stretches=[DecodeStretch('int4', 1, 9000.0, 20, taken_s)]))
    now = tracker.publish(2)
    ratio = now.law(RECOVERY, 'int4').behind(Behind(9000), 20) / TRUE.behind(Behind(9000), 20)
    assert ratio == pytest.approx(1.5, rel=0.03)
    assert ratio == pytest.approx(now.law(DECODE_STEP, 'int4').seconds(9000) / STEP.seconds(9000))


def test_a_jump_just_below_the_longest_context_does_not_go_on_beyond_it() -> None:
    """Steps were seen on its other side too closely, or not at all, to tell of a slope there."""
    for seed in range(6):
        rng, samples = np.random.default_rng(seed), []
        for run, n in enumerate([16, 27, 45, 76, 128] * 4, 1):
            for number in range(4):
                true_s = 0.01 if n + number <= 128 else 0.013
                samples.append(Sample(DECODE_STEP, n + number,
                                      true_s * (1 + 0.01 * rng.normal()), run=run, point=n))
        law = fit_law(DECODE_STEP, samples)
        assert law.seconds(128) < 0.015 and law.seconds(512) < 0.04
