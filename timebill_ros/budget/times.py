# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The estimator's times from the plan to the end, as the server's configuration plans with them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import Behind

if TYPE_CHECKING:
    from timebill_ros.budget.planner import PlannerConfig


@dataclass(frozen=True)
class PlannedTimes:
    """Worst-case seconds times the learned time factor, or expected ones; of one tier."""

    estimator: TimeEstimator
    config: 'PlannerConfig'

    def overhead_s(self, n_tokens: int) -> float:
        """Return the time around the model's work for a response of ``n_tokens``."""
        return self._factor * self.estimator.overhead_s(n_tokens, self.config.worst_case_times)

    def evict_s(self, n_prompt: int) -> float:
        """Return the time of an eviction from ``n_prompt`` tokens."""
        return self._factor * self.estimator.evict_s(n_prompt, self.config.worst_case_times)

    def decode_s(
            self, n_cached: float, steps: int, behind: Behind, width: int = 1) -> float:
        """
        Return the time of ``steps`` decode steps, the first with ``n_cached`` tokens cached.

        ``behind`` says where that one lies.
        """
        return self._factor * self.estimator.decode_s(
            n_cached, steps, self.config.worst_case_times, width=width, behind=behind)

    def recovery_s(self, n_prompt: int, steps: int) -> float:
        """Return what of the first ``steps`` steps is due to the prompt that they lie behind."""
        return self._factor * self.estimator.recovery_s(
            steps, Behind(n_prompt), self.config.worst_case_times)

    @property
    def _factor(self) -> float:
        return self.config.time_factor if self.config.worst_case_times else 1.0
