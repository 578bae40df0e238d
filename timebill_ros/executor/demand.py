# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
What a query still needs of the engine, and how long that takes: the numbers of the scheduler.

*Worst* is the worst case that promises are made of; *likely* is the expected time with the
predicted length, or with the worst-case length where no predictor ran.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from timebill_ros.budget.admission import Needs
from timebill_ros.budget.planner import Planning
from timebill_ros.query import NS_PER_S
from timebill_ros.time_estimator.laws import Behind, RECOVERY

if TYPE_CHECKING:
    from timebill_ros.engine.pipeline import QueryRun

_LEAST_UNIT_S = 1e-6        # what is no decode step is never taken for one
_EVER = 1 << 30             # steps


@dataclass(frozen=True)
class Demand:
    """Work left of one query. Seconds are of the engine for this query alone."""

    before_s: float         # worst: prefill and eviction that come before its next decode step
    unit_s: float           # worst: the next piece of that; 0 = its next unit is a decode step
    likely_before_s: float
    n_cached: int           # tokens cached before its next decode step
    steps: int              # decode steps left, to the worst-case length
    likely_steps: int       # likewise, to the predicted length
    tier: str
    steps_beyond: int = 0   # decode steps that may follow those, up to the query's cap
    behind: Behind = Behind(0)      # where its next decode step lies

    @property
    def decodes(self) -> bool:
        """Tell whether its next unit is a decode step."""
        return self.unit_s == 0.0

    def after_unit(self) -> 'Demand':
        """Return what is left after its next unit."""
        # not ``replace``, which costs five times as much
        if not self.decodes:
            return Demand(
                max(0.0, self.before_s - self.unit_s), self.unit_s, self.likely_before_s,
                self.n_cached, self.steps, self.likely_steps, self.tier, self.steps_beyond,
                self.behind)
        return Demand(
            self.before_s, self.unit_s, self.likely_before_s, self.n_cached + 1,
            max(0, self.steps - 1), max(0, self.likely_steps - 1), self.tier, self.steps_beyond,
            Behind(self.behind.n_prompt, self.behind.done + 1))


@dataclass(frozen=True)
class Pace:
    """How long work takes, by what a server plans with."""

    planning: Planning

    def alone_ns(self, demand: Demand) -> int:
        """Return the worst case of all that is left, with the engine to itself."""
        steps_s = self._steps_s(demand.n_cached, demand.steps, demand.tier, 1)
        return round((demand.before_s + steps_s) * NS_PER_S) + self.own_recovery_ns(demand)

    def at_most_ns(self, demand: Demand, n_cached: int) -> int:
        """
        Return the same, whatever is planned from here on and however long the response becomes.

        That is in the best tier, with nothing evicted of the ``n_cached`` tokens.
        """
        steps = demand.steps + demand.steps_beyond
        steps_s = self._steps_s(n_cached, steps, self.planning.estimator.tiers[0], 1)
        return round((demand.before_s + steps_s) * NS_PER_S) + self.recovery_ns(demand.behind)

    def recovery_ns(self, behind: Behind) -> int:
        """Return what steps of any tier from there on may take longer, in the worst case."""
        estimator = self.planning.estimator
        longest_s = max((estimator.recovery_s(_EVER, behind, self._worst, tier)
                         for tier in estimator.tiers), default=0.0)
        return round(self._factor * longest_s * NS_PER_S)

    def own_recovery_ns(self, demand: Demand) -> int:
        """
        Return what of ``alone_ns`` is due to its own prompt.

        Before it decodes all of that: whoever's steps come next may meet it.
        """
        if not demand.decodes:
            return self.recovery_ns(demand.behind)
        return round(self._factor * NS_PER_S * self.planning.estimator.recovery_s(
            demand.steps, demand.behind, self._worst, demand.tier))

    def lately(self, before: Behind, behind: Behind) -> Behind:
        """Return where the device is after a prompt, if it was ``before``: what lasts longer."""
        estimator = self.planning.estimator
        lasts = max((estimator.law(RECOVERY, tier).lasts_steps for tier in estimator.tiers),
                    default=0.0)
        return before if before.n_prompt > behind.n_prompt and before.done < lasts else behind

    def steps_ns(self, demand: Demand, n_cached: int, tier: str, width: int) -> int:
        """
        Return the worst case of the decode steps that are left, ``width`` queries in each.

        That is of settled ones: ``recovery_ns`` comes on top.
        """
        return round(self._steps_s(n_cached, demand.steps, tier, width) * NS_PER_S)

    def step_ns(
            self, n_cached: float, tier: str, lately: Behind, own: Sequence[Behind]) -> int:
        """
        Return the worst case of one decode step that some queries share.

        ``own``: where it lies behind each one's prompt; ``lately``: behind the longest prompt that
        the device met lately, whoever's that was.
        """
        estimator, worst, width = self.planning.estimator, self._worst, len(own)
        seconds = estimator.decode_s(n_cached, 1, worst, tier, width) + max(
            estimator.recovery_s(1, behind, worst, tier) for behind in own)
        if all(behind.n_prompt != lately.n_prompt for behind in own):
            seconds += estimator.recovery_s(1, lately, worst, tier)
        return round((self._factor * seconds + width * self._token_s) * NS_PER_S)

    def likely_ns(self, demand: Demand, tier: str, width: int) -> int:
        """Return the likely time of all that is left, ``width`` queries in each decode step."""
        steps, estimator = demand.likely_steps, self.planning.estimator
        seconds = demand.likely_before_s
        if steps > 0:
            seconds += estimator.decode_s(
                demand.n_cached, steps, False, tier, width, demand.behind)
            seconds += width * (estimator.overhead_s(steps) - estimator.overhead_s(0))
        return round(seconds * NS_PER_S)

    @property
    def _worst(self) -> bool:
        return self.planning.config.worst_case_times

    @property
    def _factor(self) -> float:
        return self.planning.config.time_factor if self._worst else 1.0

    @property
    def _token_s(self) -> float:
        """What one more token costs beside the model."""
        estimator = self.planning.estimator
        both = estimator.overhead_s(2, self._worst) - estimator.overhead_s(1, self._worst)
        return self._factor * both

    def _steps_s(self, n_cached: int, steps: int, tier: str, width: int) -> float:
        if steps < 1:
            return 0.0
        estimator = self.planning.estimator
        decode_s = estimator.decode_s(n_cached, steps, self._worst, tier, width)
        return self._factor * (decode_s + width * estimator.overhead_s(steps, self._worst))


def demand_of_waiting(needs: Needs, cap: int) -> Demand:
    """Return what a query needs that has not begun, with the plan that ends soonest."""
    cheapest = needs.cheapest
    steps = max(0, cheapest.n_worst - 1)
    return Demand(
        before_s=needs.prefill_worst_s + cheapest.predicted_evict_s,
        unit_s=needs.unit_s, likely_before_s=needs.least_s,
        n_cached=cheapest.n_kept, steps=steps, likely_steps=steps, tier=cheapest.tier,
        steps_beyond=max(0, cap - 1 - steps), behind=Behind(needs.n_prompt))


def demand_of_running(run: 'QueryRun', needs: Needs, chunk_tokens: int) -> Demand:
    """Return what a query still needs that has begun."""
    estimator, config = run.planning.estimator, run.planning.config
    if run.plan is None:
        worst, done, spent_s = config.worst_case_times, run.n_prefilled, run.chunk_spent_s
        until = min(needs.n_prompt, done + chunk_tokens)
        cheapest, steps = needs.cheapest, max(0, needs.cheapest.n_worst - 1)
        predict_s = estimator.predict_s(needs.n_prompt, worst)
        left_s = max(0.0, estimator.prefill_s(needs.n_prompt, worst, done) - spent_s)
        return Demand(
            before_s=left_s + predict_s + cheapest.predicted_evict_s,
            unit_s=(min(estimator.prefill_s(until, worst, done), left_s) + predict_s
                    + _LEAST_UNIT_S),
            likely_before_s=max(
                0.0, estimator.prefill_s(needs.n_prompt, False, done) - spent_s),
            n_cached=cheapest.n_kept, steps=steps, likely_steps=steps, tier=cheapest.tier,
            steps_beyond=max(0, run.n_left_at_most - 1 - steps), behind=run.behind)
    evict_s = run.plan.predicted_evict_s + _LEAST_UNIT_S if run.evicts_next else 0.0
    n_generated, n_predicted = run.timing.n_generated, run.timing.n_predicted
    steps = max(0, run.n_left)
    likely = min(steps, n_predicted - n_generated) if n_predicted > n_generated else steps
    return Demand(
        before_s=evict_s, unit_s=evict_s, likely_before_s=evict_s, n_cached=run.n_cached,
        steps=steps, likely_steps=likely, tier=run.plan.tier,
        steps_beyond=max(0, run.n_left_at_most - steps), behind=run.behind)
