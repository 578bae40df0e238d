# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The joint planner against brute force, and what it promises about more budget."""

from dataclasses import replace
import math
import random

import pytest

from timebill_ros.budget.joint import choose
from timebill_ros.budget.kept import kept_tokens, least_alpha
from timebill_ros.budget.planner import plan, PlanInputs, PlannerConfig
from timebill_ros.budget.quality import NOMINAL, QualityProfile
from timebill_ros.budget.quantiles import beyond
from timebill_ros.budget.tier_times import Situation, TierTimes, Weights
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import Law

TIERS = ('bf16', 'int8', 'int4')
WINDOW = 4
JOINT = PlannerConfig('joint')


def random_step(rng: random.Random, tier: str, speed: float) -> Law:
    p = speed * rng.choice([0.0, 10 ** rng.uniform(-5, -3)])
    q = speed * 10 ** rng.uniform(-4, -1.5)
    ratio, correlation = rng.uniform(1.0, 1.6), rng.uniform(0.0, 1.0)
    if rng.random() < 0.25:
        knots = tuple(map(float, sorted(rng.sample(range(1, 120), 3))))
        values = (q, q + rng.choice([0.0, q]), 3 * q)
        return Law('decode_step', 'piecewise', values, knots, tier, ratio, correlation=correlation)
    return Law(
        'decode_step', 'affine', (p, q), (), tier, ratio, correlation=correlation)


def random_estimator(rng: random.Random) -> TimeEstimator:
    steps = [random_step(rng, tier, speed) for tier, speed in zip(TIERS, (1.0, 0.6, 0.4))]
    return TimeEstimator(TimingCoefficients(1, 'd', 'm', 'bfloat16', '1', (
        Law('prefill', 'affine', (1e-5, 0.01)), *steps,
        Law('evict', 'affine', (rng.choice([0.0, 1e-5]), rng.choice([0.0, 0.01]))),
        Law('overhead', 'affine', (1e-5, 1e-3), worst_ratio=1.3))), TIERS[0])


def random_profile(rng: random.Random) -> QualityProfile:
    alphas = (0.0, 0.25, 0.5, 0.95)

    def rows(floor: float) -> tuple[tuple[float, ...], ...]:
        steps = [rng.choice([0.0, rng.uniform(0, 0.2)]) for _ in alphas]
        row = tuple(min(1.0, floor + sum(steps[1:i + 1])) for i in range(len(alphas)))
        return (row, tuple(min(1.0, 1.1 * loss) for loss in row))

    floors = sorted(rng.uniform(0.0, 0.3) for _ in TIERS)
    return QualityProfile('m', alphas, (20, 100), {
        tier: rows(floor) for tier, floor in zip(TIERS, floors)})


def random_situation(rng: random.Random, estimator: TimeEstimator) -> Situation:
    n_prompt, n_worst = rng.randrange(0, 90), rng.randrange(1, 40)
    tokens = sorted(rng.randrange(1, 50) for _ in range(5))
    points = tuple(zip((0.1, 0.5, 0.9, 0.95, 0.99), tokens))
    at = Situation(
        n_prompt, n_prompt, 1, n_worst, n_worst + rng.randrange(0, 20), 0.0,
        rng.choice([0.0, 0.5, 0.95, 0.95]), points, may_trade=rng.random() < 0.7,
        may_cap=rng.random() < 0.7, window=WINDOW)
    whole_s = TierTimes(estimator, rng.choice(TIERS), at, Weights()).needed_s(n_prompt, n_worst)
    return replace(at, budget_left_s=whole_s * rng.uniform(0.2, 1.1))


def _least_horizon(at: Situation) -> int:
    """Return the shortest length of which it is known how many responses are longer."""
    return min(at.n_worst, at.quantiles[0][1]) if at.may_trade else at.n_worst


def brute_force(
        at: Situation, estimator: TimeEstimator, quality: QualityProfile,
        weights: Weights) -> float | None:
    """Return the least loss over every tier, kept position and length that fits; None = none."""
    best = None
    fewest = kept_tokens(at.n_prompt, at.alpha_max, WINDOW)
    horizons = range(_least_horizon(at), at.n_worst + 1) if at.may_trade else [at.n_worst]
    for tier in TIERS:
        times, curve = TierTimes(estimator, tier, at, weights), quality.curve(tier, at.n_prompt)
        for n_kept in range(fewest, at.n_prompt + 1):
            alpha = min(at.alpha_max, least_alpha(at.n_prompt, n_kept))
            for horizon in horizons:
                if times.needed_s(n_kept, horizon) > at.budget_left_s:
                    break
                if n_kept < at.n_prompt and horizon < at.n_worst and not times.evicting_saves(
                        horizon, weights.least_gain):
                    continue
                trades = at.may_trade and horizon < at.cap
                tail = beyond(at.quantiles, horizon) if trades else 0.0
                loss = curve.at(alpha) + weights.truncation_loss * tail
                best = loss if best is None else min(best, loss)
    return best


def test_is_optimal_against_brute_force_in_random_cases() -> None:
    rng = random.Random(7)
    seen = {'whole': 0, 'cut': 0, 'hopeless': 0, 'tiers': set(), 'evicts': 0}
    for _ in range(1000):
        estimator, quality = random_estimator(rng), random_profile(rng)
        at = random_situation(rng, estimator)
        weights = Weights(truncation_loss=rng.choice([1.0, 2.0, 10.0]))
        theta = choose(at, estimator, TIERS, quality, weights)
        assert theta == choose(at, estimator, TIERS, quality, weights)
        best = brute_force(at, estimator, quality, weights)
        if best is None:
            assert not theta.worst_fits
            seen['hopeless'] += 1
            continue
        assert theta.loss <= best + 1e-12, at
        assert theta.horizon < _least_horizon(at) or theta.loss >= best - 1e-12, at
        needed_s = TierTimes(estimator, theta.tier, at, weights).needed_s(
            theta.n_kept, theta.cap if at.may_cap else theta.horizon)
        assert needed_s <= at.budget_left_s
        assert 1 <= theta.horizon <= theta.cap <= at.cap
        seen['whole' if theta.horizon == at.n_worst else 'cut'] += 1
        seen['tiers'].add(theta.tier)
        seen['evicts'] += theta.n_kept < at.n_prompt
    assert min(seen['whole'], seen['cut'], seen['hopeless'], seen['evicts']) > 50, seen
    assert seen['tiers'] == set(TIERS)


@pytest.mark.parametrize('quality', [NOMINAL, random_profile(random.Random(3))])
def test_more_budget_never_gives_a_worse_expected_quality(quality: QualityProfile) -> None:
    rng = random.Random(23)
    for _ in range(60):
        estimator = random_estimator(rng)
        at = random_situation(rng, estimator)
        losses = [
            choose(replace(at, budget_left_s=0.01 * i), estimator, TIERS, quality, Weights()).loss
            for i in range(80)]
        assert losses == sorted(losses, reverse=True)


def test_alone_and_unmeasured_it_decides_as_the_paper_but_for_the_cap() -> None:
    rng = random.Random(31)
    capped = 0
    for _ in range(500):
        estimator = random_estimator(rng)
        inputs = PlanInputs(
            rng.randrange(0, 4000), rng.randrange(1, 400), rng.uniform(0, 8),
            rng.choice([0.0, 0.5, 0.95]), rng.choice([0, rng.randrange(1, 200)]),
            quantiles=((0.5, 50), (0.99, 120)))
        paper = plan(inputs, estimator, PlannerConfig('paper'))
        joint = plan(inputs, estimator, JOINT)
        assert (joint.tier, joint.alpha, joint.n_kept, joint.feasible) == (
            paper.tier, paper.alpha, paper.n_kept, paper.feasible)
        assert joint.n_worst == min(paper.n_worst, joint.cap)
        capped += joint.cap < inputs.cap
        same = plan(replace(inputs, may_trade=False, may_cap=False), estimator, JOINT)
        assert (same.cap, same.n_worst) == (paper.cap, paper.n_worst)
    assert capped > 50


def test_prefers_what_costs_the_least_quality() -> None:
    law = [Law('decode_step', 'affine', (1e-6, q), (), tier) for tier, q in zip(
        TIERS, (0.010, 0.006, 0.004))]
    estimator = TimeEstimator(TimingCoefficients(
        1, 'd', 'm', 'bfloat16', '1', (Law('prefill', 'constant', (0.0,)), *law)), 'bf16')
    quality = QualityProfile('m', (0.0, 0.95), (1,), {
        'bf16': ((0.0, 0.3),), 'int8': ((0.01, 0.31),), 'int4': ((0.1, 0.37),)})
    tail = ((0.5, 40), (0.99, 90), (0.9995, 100))

    def at(budget_s: float, **changed: object) -> PlanInputs:
        return replace(
            PlanInputs(1000, 101, budget_s, 0.95, tiers=TIERS, quantiles=tail), **changed)

    def theta(inputs: PlanInputs) -> tuple[str, float, int]:
        made = plan(inputs, estimator, JOINT, quality)
        return made.tier, made.alpha, made.cap

    assert theta(at(2.0)) == ('bf16', 0.0, 101)
    assert theta(at(0.8)) == ('int8', 0.0, 101)         # dearer: eviction, or a cut
    assert theta(at(0.5)) == ('int4', 0.0, 100)         # 0.05 % cut short for no eviction
    assert theta(at(0.8, tiers=('bf16',)))[0] == 'bf16'     # min_tier
    assert theta(at(0.3, may_cap=False))[2] == 101
    hopeless = plan(at(0.2), estimator, JOINT, quality)
    assert not hopeless.feasible and hopeless.tier == 'int4' and hopeless.cap < 101
    assert hopeless.predicted_rest_worst_s <= 0.2
    late = plan(at(0.3, may_cap=False), estimator, JOINT, quality)      # half of all answers fit
    assert (late.tier, late.n_kept, late.cap) == ('int8', 1000, 101)
    promised = plan(
        at(0.2, may_trade=False, may_cap=False), estimator, JOINT, quality)
    assert promised.n_kept < 1000


def test_beyond_is_one_below_the_first_quantile() -> None:
    tail = ((0.1, 5), (0.9, 20))
    assert [beyond(tail, n) for n in (1, 4)] == [1.0, 1.0]
    assert beyond(tail, 5) == beyond(tail, 19) == 0.9
    assert beyond(tail, 20) == pytest.approx(0.1)


def test_a_cap_of_one_token_needs_no_step() -> None:
    made = plan(PlanInputs(10, 1, 0.0, 0.95), random_estimator(random.Random(1)), JOINT)
    assert made.cap == made.n_worst == 1 and made.predicted_decode_worst_s == 0.0
    assert math.isnan(made.predicted_decode_s)
