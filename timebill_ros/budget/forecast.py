# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""When a running query ends in the worst case, seen from the middle of its prefill or decoding."""

from dataclasses import replace

from timebill_ros.budget.planner import plan, PlanInputs, Planning
from timebill_ros.budget.times import PlannedTimes
from timebill_ros.time_estimator.laws import Behind


def rest_in_prefill_s(planning: Planning, inputs: PlanInputs, n_done: int) -> float:
    """
    Return the worst-case seconds to the end of a query of whose prompt ``n_done`` tokens are done.

    ``inputs.budget_left_s`` counts from now; the plan assumed is the one that would be made if the
    rest of the prefill took its worst case, without a cap of its own: whether the whole response
    fits is the question.
    """
    estimator, config = planning.estimator, planning.config
    prefill_s = estimator.prefill_s(inputs.n_prompt, config.worst_case_times, n_done)
    later = replace(
        inputs, budget_left_s=inputs.budget_left_s - prefill_s, may_trade=False, may_cap=False)
    return prefill_s + plan(later, estimator, config, planning.quality).predicted_rest_worst_s


def rest_in_decode_s(
        planning: Planning, n_cached: int, n_left: int, behind: Behind, tier: str = '',
        width: int = 1) -> float:
    """
    Return the worst-case seconds of ``n_left`` more tokens with ``n_cached`` in the cache.

    ``behind``: where the next step lies; ``tier`` '' is the estimator's own; ``width`` sequences
    share each step.
    """
    if n_left < 1:
        return 0.0
    estimator = planning.estimator.for_tier(tier) if tier else planning.estimator
    times = PlannedTimes(estimator, planning.config)
    return times.decode_s(n_cached, n_left, behind, width) + times.overhead_s(n_left)
