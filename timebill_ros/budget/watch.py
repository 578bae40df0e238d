# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Watches one decoding query: when to look at its plan again, and what with."""

from timebill_ros.budget.planner import Plan, PlanInputs, Planning
from timebill_ros.budget.replan import (
    Pace, replan, REPLAN_STEPS, Replanned, RunState, tokens_that_fit)
from timebill_ros.budget.times import PlannedTimes
from timebill_ros.time_estimator.laws import Behind


class PlanWatch:
    """The pace of a query's decode steps, and when its plan was last changed."""

    def __init__(self, planning: Planning) -> None:
        """Watch a query that is planned with ``planning``."""
        self._planning = planning
        self._pace = Pace()
        self._changed_at = 0
        self._was_late = False
        self.beyond_worst = 1.0     # slow steps of late over the worst case of the laws

    def stepped(
            self, step_s: float, tier: str, width: int, n_cached: float, behind: Behind) -> None:
        """
        Take a decode step of ``width`` queries with ``n_cached`` tokens cached on average.

        ``behind`` says where this query's lies.
        """
        estimator = self._planning.estimator.for_tier(tier)
        expected_s = estimator.decode_s(n_cached, 1, width=width, behind=behind)
        self._pace.add(step_s, expected_s)
        worst_s = PlannedTimes(estimator, self._planning.config).decode_s(
            n_cached, 1, behind, width)
        self.beyond_worst = max(1.0, self._pace.slowest * expected_s / worst_s)

    def is_due(self, n_generated: int, cap: int, late: bool) -> bool:
        """Tell whether to look again: every few steps, once late, and near the cap."""
        turned, self._was_late = late and not self._was_late, late
        return turned or n_generated % REPLAN_STEPS == 0 or n_generated >= cap - 1

    def tokens_left(
            self, inputs: PlanInputs, plan: Plan, n_generated: int, n_kept: int) -> int:
        """Return how many more tokens fit in the worst case with the plan in force."""
        return tokens_that_fit(
            RunState(inputs, plan, n_generated, n_kept, slowdown=self._pace.slowdown),
            self._planning)

    def look(
            self, inputs: PlanInputs, plan: Plan, n_generated: int, n_kept: int,
            n_left_predicted: int = 0) -> Replanned:
        """Re-plan; ``inputs`` as for a plan made now, the rest as in ``RunState``."""
        found = replan(RunState(
            inputs, plan, n_generated, n_kept, n_left_predicted, self._pace.slowdown,
            self._changed_at), self._planning)
        if found.plan is not None:
            self._changed_at = n_generated
        return found
