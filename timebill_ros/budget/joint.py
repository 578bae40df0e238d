# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Theta = (tier, alpha, cap) with the least expected loss among those that fit the worst case.

    loss(tier, alpha, h) = l(tier, alpha) + lambda * P(N > h)

l is the quality profile's loss, h <= N_W the length that is planned for, lambda what an answer cut
short weighs against a whole one. Theta fits if eviction, the decode steps up to h and the overhead
take no longer than the budget, all in the worst case. Of h only the lengths at which P(N > h) is
known need a look: between two of them it stays, while the time grows. So per tier and h alpha
follows in closed form (``TierTimes.most_kept``), and there are few h worth trying, because a loss
lambda * P(N > h) above the best found ends the search. Below the first known length P(N > h) is
not known at all, and so short an h counts as none. For an h below N_W nothing is evicted where
that cannot save the share ``least_gain`` of the decoding.

The cap is then the longest response that still fits with this tier and alpha; it never exceeds the
query's own. Where nothing fits, the tier is the one that ends N_W soonest, whatever the budget, and
the cap what fits of it. Nothing is evicted then where lengths can be weighed: too short for every
length that is known, the answer would only get worse. Where they cannot (no predictor, no measured
quality, or the whole of N_W was promised) alpha is what ends N_W soonest, as the paper clips it.

``docs/planner.md`` states order, ties and monotonicity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from timebill_ros.budget.kept import least_alpha
from timebill_ros.budget.quality import LossCurve, QualityProfile
from timebill_ros.budget.quantiles import beyond
from timebill_ros.budget.tier_times import Situation, TierTimes, Weights
from timebill_ros.time_estimator.estimator import TimeEstimator

_NEAR_LOOKS = 3     # around a good guess, before halving


@dataclass(frozen=True)
class Theta:
    """The choice."""

    tier: str
    n_kept: int
    horizon: int        # h, the length that was planned for
    cap: int
    loss: float
    worst_fits: bool    # N_W fits with some theta


def choose(
        at: Situation, estimator: TimeEstimator, tiers: Sequence[str], quality: QualityProfile,
        weights: Weights) -> Theta:
    """Return the best theta; ``tiers`` are the ones allowed, best first."""
    options = [TierTimes(estimator, tier, at, weights) for tier in tiers]
    curves = [quality.curve(tier, at.n_prompt) for tier in tiers]
    weighs = at.may_trade and quality.measured and bool(at.quantiles)
    horizons = _horizons(at) if weighs else [(at.n_worst, 0.0)]
    best: tuple[float, int, int, int] | None = None     # loss, tier's index, kept, horizon
    for index, (times, curve) in enumerate(zip(options, curves)):
        least = curve.at(_alpha(at, at.n_kept))
        worth = horizons if best is None else [
            each for each in horizons if least + weights.truncation_loss * each[1] < best[0]]
        for horizon, tail in worth[_first_that_fits(times, worth):]:
            if best is not None and least + weights.truncation_loss * tail >= best[0]:
                break
            kept = times.most_kept(horizon)
            if kept is None or (kept < at.n_kept and horizon < at.n_worst
                                and not times.evicting_saves(horizon, weights.least_gain)):
                continue
            loss = curve.at(_alpha(at, kept)) + weights.truncation_loss * tail
            if best is None or loss < best[0]:
                best = (loss, index, kept, horizon)
            if kept == at.n_kept:
                break       # a shorter one only loses more
    # With nothing evicted the search has seen every known length: what is left is to be too short.
    if best is None or (best[3] < at.n_worst and best[0] >= weights.truncation_loss):
        cheapest = _cheapest(at, options, curves, weights, weighs)
        if best is None or cheapest.loss < best[0]:
            return cheapest
    loss, index, kept, horizon = best
    worst_fits = horizon == at.n_worst or any(times.fits(at.n_worst) for times in options)
    cap = options[index].longest(kept, horizon, at.cap) if at.may_cap else at.cap
    return Theta(tiers[index], kept, horizon, cap, loss, worst_fits)


def _horizons(at: Situation) -> list[tuple[int, float]]:
    """Return the lengths worth planning for with P(N > length), N_W first."""
    # A response that reaches the query's own cap is whole.
    tail = 0.0 if at.n_worst >= at.cap else beyond(at.quantiles, at.n_worst)
    found = [(at.n_worst, tail)]
    shortest = at.n_worst
    for probability, tokens in reversed(at.quantiles):
        if at.n_generated <= tokens < shortest:     # of equal lengths the last one counts
            found.append((tokens, 1.0 - probability))
            shortest = tokens
    return found


def _first_that_fits(times: TierTimes, horizons: list[tuple[int, float]]) -> int:
    """Return the index of the longest horizon that fits at all; their number if none does."""
    if not horizons:
        return 0
    reach = times.reach(horizons[0][0])
    if reach >= horizons[0][0]:
        return 0
    # Time grows about as the length does, so the first guess is near; its neighbours come next.
    guess = next((at for at, each in enumerate(horizons) if each[0] <= reach), len(horizons))
    low, high, looks = 0, len(horizons), 0              # low does not fit, high is taken to
    while high - low > 1:
        middle = min(max(guess, low + 1), high - 1) if looks < _NEAR_LOOKS else (low + high) // 2
        if times.fits(horizons[middle][0]):
            high, guess = middle, middle - 1
        else:
            low, guess = middle, middle + 1
        looks += 1
    return high


def _cheapest(
        at: Situation, options: list[TierTimes], curves: list[LossCurve], weights: Weights,
        weighs: bool) -> Theta:
    """
    Return the tier and alpha that end N_W soonest, whatever the budget, and what fits of it.

    Where lengths can be weighed nothing is evicted: what that gains the search has seen.
    """
    soonest_s, choice = inf, (0, at.n_kept)
    for index, times in enumerate(options):
        kept = at.n_kept
        if not weighs and times.evicting_saves(at.n_worst, weights.least_gain):
            kept = times.fewest
        whole_s = times.needed_s(kept, at.n_worst)
        if whole_s < soonest_s:
            soonest_s, choice = whole_s, (index, kept)
    index, kept = choice
    reached = options[index].longest(kept, at.n_generated, at.n_worst)
    cap = reached if at.may_cap else at.cap
    cut = (beyond(at.quantiles, reached) if weighs and reached < at.cap
           else float(reached < at.n_worst))
    loss = curves[index].at(_alpha(at, kept)) + weights.truncation_loss * cut
    return Theta(options[index].tier, kept, reached, cap, loss, False)


def _alpha(at: Situation, n_kept: int) -> float:
    return min(max(at.alpha_max, least_alpha(at.n_prompt, at.n_kept)),
               least_alpha(at.n_prompt, n_kept))
