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

from timebill_ros.budget.kept import kept_tokens, least_alpha, SNAPKV_WINDOW
from timebill_ros.budget.quality import LossCurve, QualityProfile
from timebill_ros.budget.search import last_within
from timebill_ros.time_estimator.estimator import TimeEstimator, worst_factor
from timebill_ros.time_estimator.laws import DECODE_STEP, EVICT, OVERHEAD, REEVICT

# At which probabilities a predicted length distribution is handed to the planner.
PROBABILITIES = (
    0.01, *(round(0.04 * step, 2) for step in range(1, 23)),
    0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)
Quantiles = Sequence[tuple[float, int]]     # ascending (probability, tokens)


@dataclass(frozen=True)
class Situation:
    """Where a query stands when theta is chosen. Lengths in tokens."""

    n_prompt: int           # N_x
    n_kept: int             # prompt positions in the cache
    n_generated: int        # response tokens there are: 1 after the prefill
    n_worst: int            # N_W, more than n_generated
    cap: int                # longest response, at least N_W
    budget_left_s: float
    alpha_max: float
    quantiles: Quantiles = ()
    may_trade: bool = True  # a length below N_W may be planned for
    may_cap: bool = True    # a planned cap may end the response
    evicted: bool = False   # an eviction from here on is a later one (law REEVICT)
    n_paid: int = 0         # response tokens whose overhead is paid
    slowdown: float = 1.0   # measured over expected decode steps so far
    margin: float = 1.0     # share of what is allowed for beyond expected times
    width: int = 1          # sequences in each decode step
    window: int = SNAPKV_WINDOW


@dataclass(frozen=True)
class Weights:
    """The planner's parameters that the choice depends on."""

    worst_case_times: bool = True
    truncation_loss: float = 10.0   # lambda
    least_gain: float = 0.05        # share of decoding that an eviction short of N_W must save
    time_factor: float = 1.0        # learned, on all worst-case times


@dataclass(frozen=True)
class Theta:
    """The choice."""

    tier: str
    n_kept: int
    horizon: int        # h, the length that was planned for
    cap: int
    loss: float
    worst_fits: bool    # N_W fits with some theta


class TierTimes:
    """What the rest of a query costs with one tier: worst-case seconds, and their inverses."""

    def __init__(
            self, estimator: TimeEstimator, tier: str, at: Situation, weights: Weights) -> None:
        """Look the laws up once."""
        self.tier = tier
        self._at = at
        self._cached = at.n_generated - 1       # response tokens in the cache
        self._worst = weights.worst_case_times
        self._factor = weights.time_factor
        self._step = estimator.law(DECODE_STEP, tier, at.width)
        self._overhead = estimator.law(OVERHEAD, tier)
        evict = estimator.law(REEVICT if at.evicted else EVICT, tier)
        if at.evicted and evict.samples == 0:
            evict = estimator.law(EVICT, tier)
        self._evict_s = evict.seconds(at.n_prompt) * self._of_one(worst_factor(evict, 1))
        self._overhead_factor = self._of_one(worst_factor(self._overhead, 1))
        self._rooms: dict[int, tuple[int, float, float]] = {}
        self._sums: dict[tuple[int, int], float] = {}
        self.fewest = min(at.n_kept, kept_tokens(at.n_prompt, at.alpha_max, at.window))

    def needed_s(self, n_kept: int, n_total: int) -> float:
        """Return the seconds until the response has ``n_total`` tokens, eviction included."""
        steps = n_total - self._at.n_generated
        decode_s = self._decode_s(n_kept, max(0, steps))
        evict_s = self._evict_s if n_kept < self._at.n_kept else 0.0
        return decode_s * self._decode_factor(steps) + evict_s + self.overhead_s(n_total)

    def fits(self, n_total: int) -> bool:
        """Tell whether ``n_total`` tokens fit, with as much eviction as is allowed or with none."""
        steps, whole_s, evicted_s = self._room_s(n_total)
        least_s = self._decode_s(self.fewest, steps)
        return least_s <= evicted_s or (
            least_s <= whole_s and self._decode_s(self._at.n_kept, steps) <= whole_s)

    def most_kept(self, n_total: int) -> int | None:
        """
        Return the most prompt positions with which ``n_total`` tokens fit; None = none do.

        The sum of an affine law is linear in the positions, so that the first look of the search
        is the closed form of alpha (``alpha``).
        """
        n_kept, fewest = self._at.n_kept, self.fewest
        steps, whole_s, evicted_s = self._room_s(n_total)
        most_s = self._decode_s(n_kept, steps)
        if most_s <= whole_s:
            return n_kept
        least_s = self._decode_s(fewest, steps)
        if fewest >= n_kept or least_s > evicted_s:
            return None
        return last_within(
            lambda kept: self._step.sum_steps(kept + self._cached, steps), fewest, n_kept,
            evicted_s, least_s, most_s)

    def evicting_saves(self, n_total: int, share: float) -> bool:
        """Tell whether evicting all that is allowed saves more than a share of the decoding."""
        whole_s = self.needed_s(self._at.n_kept, n_total)
        saved_s = whole_s - self.needed_s(self.fewest, n_total)
        return saved_s > share * (whole_s - self.overhead_s(n_total))

    def longest(self, n_kept: int, least: int, most: int) -> int:
        """Return the longest response in [least, most] that fits; ``least`` if none does."""
        budget_s, most_s = self._at.budget_left_s, self.needed_s(n_kept, most)
        if most_s <= budget_s:
            return most
        return last_within(
            lambda n_total: self.needed_s(n_kept, n_total), least, most, budget_s,
            self.needed_s(n_kept, least), most_s)

    def overhead_s(self, n_total: int) -> float:
        """Return the seconds around the model's work until then."""
        return self._overhead.seconds(n_total - self._at.n_paid) * self._overhead_factor

    def _room_s(self, n_total: int) -> tuple[int, float, float]:
        """
        Return the steps to ``n_total`` tokens, and what ``_decode_s`` of them may be.

        Without an eviction, and with one. Several questions ask for the same.
        """
        room = self._rooms.get(n_total)
        if room is None:
            steps = max(0, n_total - self._at.n_generated)
            left_s = self._at.budget_left_s - self.overhead_s(n_total)
            factor = self._decode_factor(steps) if steps else 1.0
            room = self._rooms[n_total] = (
                steps, left_s / factor, (left_s - self._evict_s) / factor)
        return room

    def _decode_s(self, n_kept: int, steps: int) -> float:
        """Return the expected seconds of the steps to come; several questions ask for the same."""
        found = self._sums.get((n_kept, steps))
        if found is None:
            found = self._sums[n_kept, steps] = self._step.sum_steps(n_kept + self._cached, steps)
        return found

    def _decode_factor(self, steps: int) -> float:
        """
        Return worst over expected time of the steps to come.

        The worst case already allows for steps that are slow together; what was measured counts
        where it is slower still, and then what one step strays from the next comes on top.
        """
        slowdown, margin = self._at.slowdown, self._at.margin
        if not self._worst:
            return 1.0 + margin * max(0.0, slowdown - 1.0)
        worst = worst_factor(self._step, steps)
        if slowdown > 1.0:
            apart = (self._step.worst_ratio - 1.0) / max(1, steps) ** 0.5
            worst = max(worst, slowdown * (1.0 + apart))
        return self._factor * (1.0 + margin * (worst - 1.0))

    def _of_one(self, factor: float) -> float:
        return factor * self._factor if self._worst else 1.0


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


def beyond(quantiles: Quantiles, n_tokens: int) -> float:
    """Return the largest P(N > n) that the quantiles allow: 1 below the first of them."""
    reached = 0.0
    for probability, tokens in quantiles:
        if tokens > n_tokens:
            break
        reached = probability
    return 1.0 - reached


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
    if not horizons or times.fits(horizons[0][0]):
        return 0
    low, high = 0, len(horizons)                        # low does not fit, high is taken to
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if times.fits(horizons[middle][0]) else (middle, high)
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
