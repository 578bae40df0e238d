# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The choice of alpha against brute force over all that an eviction can keep."""

import math
import random

import pytest

from timebill_ros.budget.alpha import AlphaChoice, closed_form_alpha, select_alpha
from timebill_ros.budget.kept import kept_tokens, least_alpha
from timebill_ros.time_estimator.laws import Law

WINDOW = 32


def affine(p: float, q: float) -> Law:
    return Law('decode_step', 'affine', (p, q))


def random_law(rng: random.Random) -> Law:
    form = rng.choice(['affine', 'affine', 'affine', 'piecewise', 'constant', 'quadratic'])
    p = rng.choice([0.0] + 3 * [10 ** rng.uniform(-8, -4)])
    q = rng.choice([0.0, rng.uniform(0, 0.05)])
    if form == 'affine':
        return affine(p, q)
    if form == 'constant':
        return Law('decode_step', form, (q,))
    if form == 'quadratic':
        return Law('decode_step', form, (p / 1e4, p, q))
    knots = sorted(rng.sample(range(1, 5000), 4))
    values, at = [], q
    for _ in knots:
        values.append(at)
        at += rng.choice([0.0, rng.uniform(0, 0.02)])
    return Law('decode_step', form, tuple(values), knots=tuple(map(float, knots)))


def decode_s(law: Law, n_kept: int, n_worst: int) -> float:
    return math.fsum(law.seconds(n_kept + i - 1) for i in range(1, n_worst))


def brute_force(law: Law, n_prompt: int, n_worst: int, budget_s: float, alpha_max: float,
                evict_s: float) -> int | None:
    """Return the most positions whose worst case fits, trying each; None = none does."""
    for n_kept in range(n_prompt, kept_tokens(n_prompt, alpha_max, WINDOW) - 1, -1):
        cost_s = decode_s(law, n_kept, n_worst) + (evict_s if n_kept < n_prompt else 0.0)
        if cost_s <= budget_s:
            return n_kept
    return None


def random_case(rng: random.Random) -> tuple[Law, int, int, float, float, float]:
    law = random_law(rng)
    edge = [0, 1, WINDOW, WINDOW + 1, WINDOW + 2]
    n_prompt = rng.choice(edge) if rng.random() < 0.2 else rng.randrange(33, 400)
    n_worst = rng.choice([1, 2, 3]) if rng.random() < 0.2 else rng.randrange(4, 120)
    alpha_max = rng.choice([0.0, 0.5, 0.95, 0.95, rng.uniform(0, 0.95)])
    low = decode_s(law, kept_tokens(n_prompt, alpha_max, WINDOW), n_worst)
    high = decode_s(law, n_prompt, n_worst)
    evict_s = rng.choice([0.0, rng.uniform(0, 0.6) * (high - low)])
    between = rng.uniform(low, max(low, high - evict_s)) + evict_s
    budget_s = rng.choice([-1.0, 0.0, low * 0.9, high * 1.1, between, between, between])
    return law, n_prompt, n_worst, budget_s, alpha_max, evict_s


def close_to_the_edge(law: Law, case: tuple, choice: AlphaChoice) -> bool:
    """Tell whether rounding of the sum decides: a neighbour costs the budget but for 1e-9."""
    _, n_prompt, n_worst, budget_s, _, evict_s = case
    costs = [decode_s(law, choice.n_kept + more, n_worst) + spent
             for more in (0, 1) for spent in (0.0, evict_s)]
    return any(math.isclose(cost, budget_s, rel_tol=1e-9, abs_tol=1e-12) for cost in costs)


def test_agrees_with_brute_force_in_random_cases() -> None:
    rng = random.Random(11)
    seen = {'slack': 0, 'evicts': 0, 'infeasible': 0}
    for _ in range(1500):
        case = random_case(rng)
        law, n_prompt, n_worst, budget_s, alpha_max, evict_s = case
        choice = select_alpha(law, n_prompt, n_worst, budget_s, alpha_max, evict_s, WINDOW)
        assert 0.0 <= choice.alpha <= alpha_max
        assert choice.n_kept == kept_tokens(n_prompt, choice.alpha, WINDOW)
        best = brute_force(law, n_prompt, n_worst, budget_s, alpha_max, evict_s)
        agrees = not choice.fits if best is None else choice.fits and choice.n_kept == best
        assert agrees or close_to_the_edge(law, case, choice), case
        seen['infeasible' if best is None else 'slack' if best == n_prompt else 'evicts'] += agrees
    assert min(seen.values()) > 200 and sum(seen.values()) > 1450, seen


def test_the_closed_form_agrees_with_a_continuous_search() -> None:
    rng = random.Random(5)
    for _ in range(1000):
        p, q = 10 ** rng.uniform(-8, -4), rng.uniform(0, 0.05)
        n_prompt, n_worst = rng.randrange(1, 8000), rng.randrange(2, 2000)
        wanted = rng.uniform(-0.5, 1.5)
        budget_s = affine(p, q).sum_steps((1 - wanted) * n_prompt, n_worst - 1)
        found = closed_form_alpha(p, q, n_prompt, n_worst, budget_s)
        assert found == pytest.approx(wanted, abs=1e-4)


def test_raw_alpha_is_what_the_closed_form_asks_for_before_both_clips() -> None:
    law = affine(1e-5, 0.001)
    slack = select_alpha(law, 1000, 100, 10.0, 0.95)
    assert slack.alpha_raw < 0.0 and slack.alpha == 0.0 and slack.fits
    short = select_alpha(law, 1000, 100, 0.01, 0.95)
    assert short.alpha_raw > 0.95 and short.alpha == 0.95 and not short.fits
    assert short.n_kept == 50
    between = select_alpha(law, 1000, 100, law.sum_steps(600.5, 99), 0.95)
    assert between.alpha_raw == pytest.approx(0.3995) and between.n_kept == 600
    assert between.alpha == pytest.approx(0.4) and between.fits


def test_raw_alpha_of_a_piecewise_law_comes_from_bisection() -> None:
    law = Law('decode_step', 'piecewise', (0.01, 0.01, 0.05), knots=(0.0, 400.0, 1400.0))
    choice = select_alpha(law, 1000, 50, law.sum_steps(700.0, 49), 0.95)
    assert choice.alpha_raw == pytest.approx(0.3) and choice.n_kept in (699, 700)


@pytest.mark.parametrize('n_prompt, n_worst, p', [(0, 10, 1e-5), (100, 1, 1e-5), (100, 10, 0.0)])
def test_where_nothing_depends_on_alpha_there_is_no_raw_value(
        n_prompt: int, n_worst: int, p: float) -> None:
    choice = select_alpha(affine(p, 0.01), n_prompt, n_worst, 1.0, 0.95)
    assert math.isnan(choice.alpha_raw) and choice.alpha == 0.0 and choice.fits


def test_what_does_not_fit_is_not_evicted_if_that_would_cost_more_than_it_saves() -> None:
    choice = select_alpha(affine(1e-9, 0.01), 1000, 10, 0.01, 0.95, evict_s=0.5)
    assert not choice.fits and choice.alpha == 0.0 and choice.n_kept == 1000


def test_a_hopeless_eviction_has_to_save_its_least_gain() -> None:
    step = affine(1e-6, 0.02)           # evicting 95 % of 100 tokens saves half a per cent
    hopeless = select_alpha(step, 100, 50, 0.1, 0.95, least_gain=0.05)
    assert (hopeless.alpha, hopeless.n_kept, hopeless.fits) == (0.0, 100, False)
    assert select_alpha(step, 100, 50, 0.1, 0.95).alpha == 0.95
    least_s = step.sum_steps(kept_tokens(100, 0.95, WINDOW), 49)
    assert select_alpha(step, 100, 50, least_s, 0.95, least_gain=0.05).fits    # it decides: kept
    steep = affine(1e-3, 0.02)
    assert select_alpha(steep, 100, 50, 0.1, 0.95, least_gain=0.05).alpha == 0.95


def test_kept_tokens_at_its_edges() -> None:
    assert kept_tokens(0, 0.95) == 0
    assert kept_tokens(32, 0.95) == 32
    assert kept_tokens(33, 0.95) == 33
    assert kept_tokens(34, 0.95) == 33
    assert kept_tokens(1000, 0.0) == 1000
    assert kept_tokens(1000, 0.95) == 50
    assert kept_tokens(1001, 0.5) == 501
    for n_prompt in range(33, 700, 7):
        for n_kept in range(33, n_prompt + 1):
            assert kept_tokens(n_prompt, least_alpha(n_prompt, n_kept)) == n_kept
