# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the record of a query says about the laws: each stage's time, and the lengths it was for."""

from dataclasses import dataclass
from itertools import accumulate
from math import isfinite

from timebill_ros.query import QueryTiming
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator, worst_factor
from timebill_ros.time_estimator.laws import (
    Behind, DECODE_STEP, EVICT, Law, OVERHEAD, PREFILL)

LEAST_STEPS = 3                 # shorter decodings say more about the clock than about the law


@dataclass(frozen=True)
class Sample:
    """One stage of one query: what it took, and the lengths to ask the laws for."""

    law: str
    tier: str
    measured_s: float
    n_tokens: int = 0                   # the prompt's; of the overhead the response's
    n_done: int = 0                     # of which the prefill was saved
    # of decode steps: cached before, steps, and where they lie
    stretches: tuple[tuple[float, int, Behind], ...] = ()
    width: int = 1                      # sequences in each step

    @property
    def steps(self) -> int:
        """Return how many samples of the law were measured together."""
        return sum(steps for _, steps, _ in self.stretches) or 1

    def law_of(self, coefficients: TimingCoefficients) -> Law:
        """Return its law."""
        return coefficients.law(self.law, self.tier, self.width)

    def seconds(self, coefficients: TimingCoefficients) -> float:
        """Return what is expected for these lengths."""
        law = self.law_of(coefficients)
        if not self.stretches:
            return law.seconds(self.n_tokens, self.n_done)
        estimator = TimeEstimator(coefficients, self.tier)
        return sum(estimator.decode_s(n_cached, steps, width=self.width, behind=behind)
                   for n_cached, steps, behind in self.stretches)

    def worst_s(self, coefficients: TimingCoefficients) -> float:
        """Return the worst case for these lengths."""
        from_the_start = self.law == PREFILL and not self.n_done
        cold_s = TimeEstimator(coefficients).cold_s() if from_the_start else 0.0
        factor = worst_factor(self.law_of(coefficients), self.steps)
        return self.seconds(coefficients) * factor + cold_s


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
    done = accumulate((each.steps for each in timing.stretches), initial=0)
    placed = [(each, Behind(timing.n_prompt, before))
              for each, before in zip(timing.stretches, done)]
    for tier, width in dict.fromkeys((each.tier, each.width) for each in timing.stretches):
        same = [each for each in placed if (each[0].tier, each[0].width) == (tier, width)]
        sample = Sample(
            DECODE_STEP, tier, sum(each.seconds for each, _ in same), width=width,
            stretches=tuple((each.n_cached, each.steps, behind) for each, behind in same))
        if sample.steps >= LEAST_STEPS:
            found.append(sample)
    return [each for each in found if isfinite(each.measured_s) and each.measured_s > 0.0]
