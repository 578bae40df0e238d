# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What a query needs before any of its work is done: the numbers that admission decides with."""

from dataclasses import dataclass, replace
from math import ceil

from timebill_ros.budget.planner import Plan, plan, PlanInputs, PlannerConfig
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import Behind

_GRAIN_S = 0.01     # budgets are named in steps of this size, rounded up


@dataclass(frozen=True)
class Needs:
    """Seconds of engine work for a query that has not begun."""

    n_prompt: int            # tokens
    least_s: float           # expected: prefill and one token
    prefill_worst_s: float   # worst case: prefill, and the prediction of the length after it
    cheapest: Plan           # the plan that ends soonest in the worst case
    unit_s: float            # worst case: the longest piece of work that cannot be stopped

    @property
    def worst_s(self) -> float:
        """Worst case of the whole query with the cheapest plan."""
        return self.prefill_worst_s + self.cheapest.predicted_rest_worst_s


def needs(
        inputs: PlanInputs, estimator: TimeEstimator, config: PlannerConfig,
        chunk_tokens: int) -> Needs:
    """Return what a query needs, prefilled in chunks; ``inputs.budget_left_s`` plays no part."""
    cheapest = cheapest_plan(inputs, estimator, config)
    n_prompt, worst = inputs.n_prompt, config.worst_case_times
    chunk_s = estimator.prefill_s(n_prompt, worst, n_done=max(0, n_prompt - chunk_tokens))
    step_s = estimator.decode_s(
        n_prompt + cheapest.n_worst, 1, worst, behind=Behind(n_prompt))
    return Needs(
        n_prompt, least_s=estimator.prefill_s(n_prompt) + estimator.overhead_s(1),
        prefill_worst_s=estimator.prefill_s(n_prompt, worst) + estimator.predict_s(n_prompt, worst),
        cheapest=cheapest, unit_s=max(chunk_s, step_s))


def cheapest_plan(inputs: PlanInputs, estimator: TimeEstimator, config: PlannerConfig) -> Plan:
    """Return the plan that ends soonest in the worst case, however little its eviction saves."""
    return plan(
        replace(inputs, budget_left_s=0.0, may_trade=False, may_cap=False), estimator,
        replace(config, least_gain=0.0))


def refusal_message(
        need: Needs, guaranteed: bool, waiting_s: float, allowance_s: float,
        margin_s: float) -> str:
    """
    Say why a budget is too small and which would do.

    ``waiting_s`` passes between arrival and the moment at which the engine can begin, ``margin_s``
    is kept back for delivery.
    """
    own_s = need.worst_s if guaranteed else need.least_s
    enough_s = ceil((waiting_s + own_s + margin_s) / _GRAIN_S) * _GRAIN_S
    what = f'the prefill of {need.n_prompt} tokens and one token'
    if guaranteed:
        what = (f'the worst case of {need.n_prompt} prompt and {need.cheapest.n_worst} response '
                f'tokens at alpha {need.cheapest.alpha:.2f}')
    parts = [f'{own_s:.2f} s for {what}']
    if waiting_s >= _GRAIN_S:
        parts.append(f'{waiting_s:.2f} s of waiting')
    if margin_s > 0.0:
        parts.append(f'{margin_s:.3f} s for delivery')
    verdict = f'time_allowance is {allowance_s:.3f} s, at least {enough_s:.2f} s would do: '
    return verdict + ', '.join(parts)
