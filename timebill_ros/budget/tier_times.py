# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Where a query stands when theta is chosen, and what its rest costs with one tier."""

from dataclasses import dataclass

from timebill_ros.budget.kept import kept_tokens, SNAPKV_WINDOW
from timebill_ros.budget.quantiles import Quantiles
from timebill_ros.budget.search import last_within
from timebill_ros.time_estimator.estimator import TimeEstimator, worst_factor
from timebill_ros.time_estimator.laws import (
    Behind, DECODE_STEP, EVICT, OVERHEAD, RECOVERY, REEVICT)

_LEAST_S = 1e-12    # of decoding: a law may be zero
# Steps to a length; what their expected time may be, without an eviction and with one; and what it
# is, with nothing evicted and with all that is allowed.
_Room = tuple[int, float, float, float, float]


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
        recovery, self._behind = estimator.law(RECOVERY, tier), Behind(at.n_prompt, self._cached)
        self._recovery = recovery if self._cached < recovery.lasts_steps else None
        evict = estimator.law(REEVICT if at.evicted else EVICT, tier)
        if at.evicted and evict.samples == 0:
            evict = estimator.law(EVICT, tier)
        self._evict_s = evict.seconds(at.n_prompt) * self._of_one(worst_factor(evict, 1))
        self._overhead_factor = self._of_one(worst_factor(self._overhead, 1))
        self._until: dict[int, tuple[int, float, float]] = {}
        self._rooms: dict[int, _Room] = {}
        self.fewest = min(at.n_kept, kept_tokens(at.n_prompt, at.alpha_max, at.window))
        # expected seconds of steps, by the tokens cached before the first; with nothing more, and
        # with all that is allowed, evicted
        self._sum = self._step.sum_steps
        self._whole, self._least = at.n_kept + self._cached, self.fewest + self._cached

    def needed_s(self, n_kept: int, n_total: int) -> float:
        """Return the seconds until the response has ``n_total`` tokens, eviction included."""
        steps, factor, beside_s = self._until.get(n_total) or self._look(n_total)
        evict_s = self._evict_s if n_kept < self._at.n_kept else 0.0
        return self._sum(n_kept + self._cached, steps) * factor + evict_s + beside_s

    def fits(self, n_total: int) -> bool:
        """Tell whether ``n_total`` tokens fit, with as much eviction as is allowed or with none."""
        _, whole_s, evicted_s, most_s, least_s = self._rooms.get(n_total) or self._room(n_total)
        return least_s <= evicted_s or most_s <= whole_s

    def reach(self, n_total: int) -> float:
        """
        Return about how many tokens fit, going by ``n_total`` > n_generated of them.

        It is at least ``n_total`` if those fit.
        """
        steps, whole_s, evicted_s, most_s, least_s = (
            self._rooms.get(n_total) or self._room(n_total))
        share = max(whole_s / max(_LEAST_S, most_s), evicted_s / max(_LEAST_S, least_s))
        return self._at.n_generated + share * steps

    def most_kept(self, n_total: int) -> int | None:
        """
        Return the most prompt positions with which ``n_total`` tokens fit; None = none do.

        The sum of an affine law is linear in the positions, so that the first look of the search
        is the closed form of alpha (``alpha``).
        """
        n_kept, fewest = self._at.n_kept, self.fewest
        steps, whole_s, evicted_s, most_s, least_s = (
            self._rooms.get(n_total) or self._room(n_total))
        if most_s <= whole_s:
            return n_kept
        if fewest >= n_kept or least_s > evicted_s:
            return None
        return last_within(
            lambda kept: self._sum(kept + self._cached, steps), fewest, n_kept,
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

    def _room(self, n_total: int) -> _Room:
        """Return what is asked of ``n_total`` tokens several times."""
        steps, factor, beside_s = self._until.get(n_total) or self._look(n_total)
        left_s = self._at.budget_left_s - beside_s
        found = self._rooms[n_total] = (
            steps, left_s / factor, (left_s - self._evict_s) / factor,
            self._sum(self._whole, steps), self._sum(self._least, steps))
        return found

    def _look(self, n_total: int) -> tuple[int, float, float]:
        """
        Return the steps to ``n_total`` tokens, worst over expected time, and what is beside them.

        That is the overhead, and what the steps take longer because of where they lie.
        """
        steps = max(0, n_total - self._at.n_generated)
        factor, beside_s = self._decode_factor(steps), self.overhead_s(n_total)
        if self._recovery is not None:
            beside_s += factor * self._recovery.behind(self._behind, steps)
        found = self._until[n_total] = steps, factor, beside_s
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
