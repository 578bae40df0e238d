# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the record of a query says about the laws: each stage's time, and the lengths it was for."""

from dataclasses import dataclass
from math import isfinite

from timebill_ros.query import QueryTiming
from timebill_ros.time_estimator.estimator import worst_factor
from timebill_ros.time_estimator.laws import DECODE_STEP, EVICT, Law, OVERHEAD, PREFILL

LEAST_STEPS = 3                 # shorter decodings say more about the clock than about the law


@dataclass(frozen=True)
class Sample:
    """One stage of one query: what it took, and the lengths to ask a law for."""

    law: str
    tier: str
    measured_s: float
    n_tokens: int = 0                   # the prompt's; of the overhead the response's
    n_done: int = 0                     # of which the prefill was saved
    stretches: tuple[tuple[float, int], ...] = ()   # of decode steps: cached before, steps
    width: int = 1                      # sequences in each step

    @property
    def steps(self) -> int:
        """Return how many samples of the law were measured together."""
        return sum(steps for _, steps in self.stretches) or 1

    def seconds(self, law: Law) -> float:
        """Return what a law expects for these lengths."""
        if self.stretches:
            return sum(law.sum_steps(n_cached, steps) for n_cached, steps in self.stretches)
        return law.seconds(self.n_tokens, self.n_done)

    def worst_s(self, law: Law, cold_s: float = 0.0) -> float:
        """Return the worst case of a law for these lengths; ``cold_s`` may come on top of it."""
        from_the_start = self.law == PREFILL and not self.n_done
        return self.seconds(law) * worst_factor(law, self.steps) + cold_s * from_the_start


def samples_of(timing: QueryTiming) -> list[Sample]:
    """Return what a query's record says about the laws, whatever its outcome."""
    found = []
    if timing.n_prompt > timing.n_cached:
        found.append(Sample(
            PREFILL, timing.tier, timing.prefill, timing.n_prompt, timing.n_cached))
    if 0 < timing.n_kept < timing.n_prompt:
        found.append(Sample(EVICT, timing.tier, timing.evict, timing.n_prompt))
    if timing.n_generated > LEAST_STEPS:
        # tokenising is over before anything is predicted
        tokenize_s = timing.tokenize if isfinite(timing.tokenize) else 0.0
        found.append(Sample(
            OVERHEAD, timing.tier, timing.overhead - tokenize_s, timing.n_generated))
    for tier, width in dict.fromkeys((each.tier, each.width) for each in timing.stretches):
        same = [each for each in timing.stretches if (each.tier, each.width) == (tier, width)]
        sample = Sample(
            DECODE_STEP, tier, sum(each.seconds for each in same), width=width,
            stretches=tuple((each.n_cached, each.steps) for each in same))
        if sample.steps >= LEAST_STEPS:
            found.append(sample)
    return [each for each in found if isfinite(each.measured_s) and each.measured_s > 0.0]
