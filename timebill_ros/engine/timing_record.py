# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The timing record of one query, filled stage by stage: predicted beside measured."""

from math import isnan
from typing import TYPE_CHECKING

from timebill_ros.budget.admission import Needs
from timebill_ros.budget.planner import Plan, Planning
from timebill_ros.budget.replan import changes
from timebill_ros.query import DecodeStretch, NS_PER_S, Query, QueryTiming
from timebill_ros.time_estimator.laws import DECODE_STEP, PREFILL

if TYPE_CHECKING:
    from timebill_ros.engine.length_forecast import LengthForecast


class TimingRecord:
    """
    Writes what is known about a query into its ``QueryTiming``.

    All arguments ``..._ns`` are moments on the steady clock. What only the node knows (total,
    slack, last_token_to_result) it writes itself.
    """

    def __init__(
            self, query: Query, n_prompt: int, cap: int, tokenize_s: float,
            planning: Planning) -> None:
        """Start with what is known before the first unit of work."""
        self._arrival_ns = query.arrival_ns
        self._estimator = planning.estimator
        coefficients = planning.estimator.coefficients
        self.timing = QueryTiming(
            n_prompt=n_prompt, n_cap=cap, n_kept=n_prompt, tier=planning.estimator.tier,
            pessimistic_factor=planning.config.pessimistic_factor, policy=planning.config.policy,
            time_factor=planning.config.time_factor, quality_source=planning.quality.source,
            coefficients_source=planning.source, coefficients_stamp_ns=coefficients.stamp_ns,
            law_prefill=list(planning.estimator.law(PREFILL).coefficients),
            law_decode_step=list(planning.estimator.law(DECODE_STEP).coefficients),
            time_allowance=query.time_allowance_ns / NS_PER_S,
            delivery_margin=query.delivery_margin_ns / NS_PER_S,
            predicted_prefill=planning.estimator.prefill_s(n_prompt), tokenize=tokenize_s,
            overhead=tokenize_s)

    def refused(self, need: Needs, now_ns: int) -> None:
        """Note what the query would have needed at its cheapest."""
        timing, cheapest = self.timing, need.cheapest
        timing.n_worst, timing.alpha_raw = cheapest.n_worst, cheapest.alpha_raw
        timing.predicted_evict = cheapest.predicted_evict_s
        timing.predicted_decode_worst = cheapest.predicted_decode_worst_s
        timing.predicted_overhead = cheapest.predicted_overhead_s
        timing.predicted_total_worst = self._since_arrival_s(now_ns) + need.worst_s

    def begun(self, now_ns: int) -> None:
        """Note the start of the first unit of work."""
        self.timing.queued = self._since_arrival_s(now_ns)

    def prefilled(self, seconds: float) -> None:
        """Note that the prompt is in the cache."""
        self.timing.prefill = seconds

    def length_predicted(self, forecast: 'LengthForecast') -> None:
        """Note the predicted length; without a predictor there is nothing to note."""
        timing = self.timing
        if forecast.name:
            timing.predictor, timing.n_predicted = forecast.name, forecast.n_predicted
            timing.predict, timing.predicted_predict = forecast.seconds, forecast.predicted_s

    def planned(self, made: Plan, now_ns: int) -> None:
        """Note the plan."""
        timing = self.timing
        timing.n_worst, timing.alpha, timing.alpha_raw = made.n_worst, made.alpha, made.alpha_raw
        timing.tier, timing.feasible, timing.n_cap = made.tier, made.feasible, made.cap
        timing.plan_elapsed = self._since_arrival_s(now_ns)
        timing.predicted_evict = made.predicted_evict_s
        timing.predicted_decode = made.predicted_decode_s
        timing.predicted_decode_worst = made.predicted_decode_worst_s
        timing.predicted_overhead = made.predicted_overhead_s
        timing.predicted_total = timing.plan_elapsed + made.predicted_rest_s
        timing.predicted_total_worst = timing.plan_elapsed + made.predicted_rest_worst_s

    def evicted(self, n_kept: int, seconds: float) -> None:
        """Note that the cache holds only ``n_kept`` positions of the prompt."""
        timing = self.timing
        timing.n_kept = n_kept
        timing.evict = seconds if isnan(timing.evict) else timing.evict + seconds

    def replanned(self, old: Plan, new: Plan, now_ns: int, why: str) -> None:
        """Note another theta; predicted times stay those of the plan."""
        timing = self.timing
        for what, before, after in changes(old, new):
            self.changed(now_ns, what, before, after, why)
        timing.tier, timing.alpha, timing.n_cap = new.tier, new.alpha, new.cap

    def token(self, now_ns: int) -> None:
        """Note another token."""
        self.timing.n_generated += 1
        if self.timing.n_generated == 1:
            self.timing.first_token = self._since_arrival_s(now_ns)

    def step(self, step_s: float, tier: str, width: int, n_cached: float) -> None:
        """Note a decode step in a batch of ``width`` with ``n_cached`` tokens cached on average."""
        timing = self.timing
        first = not timing.stretches
        timing.decode = step_s if first else timing.decode + step_s
        timing.decode_step_max = step_s if first else max(timing.decode_step_max, step_s)
        newest = None if first else timing.stretches[-1]
        if newest is None or (newest.tier, newest.width) != (tier, width):
            newest = DecodeStretch(tier, width, n_cached, 0, 0.0)
            timing.stretches.append(newest)
        newest.steps += 1
        newest.seconds += step_s

    def changed(self, now_ns: int, what: str, before: str, after: str, why: str) -> None:
        """Note a change of the plan."""
        self.timing.replans.append(
            f'{self._since_arrival_s(now_ns):.4f} {what} {before} -> {after} {why}')

    def beside_the_model(self, seconds: float) -> None:
        """Note time that a unit of work took beside the model's."""
        timing = self.timing
        timing.overhead = seconds if isnan(timing.overhead) else timing.overhead + seconds

    def at_risk(self) -> None:
        """Note that the remaining work is predicted not to fit."""
        self.timing.deadline_at_risk = True

    def ended(self) -> None:
        """Note that no more work is done for this query."""
        timing = self.timing
        if timing.n_kept == timing.n_prompt:
            timing.alpha = 0.0      # it ended before the eviction, or there was nothing to evict
        if timing.n_generated > 0:
            timing.predicted_decode_realised = self._estimator.decoded_s(timing)

    def _since_arrival_s(self, now_ns: int) -> float:
        return (now_ns - self._arrival_ns) / NS_PER_S
