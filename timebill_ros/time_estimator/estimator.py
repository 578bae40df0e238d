# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The execution time estimator: seconds for each stage of a query, expected and worst case.

Worst case. A law's ``worst_ratio`` r is the upper quantile (0.99) of measured / law over *single*
samples. One prefill or one eviction is one sample: its worst case is r times the law. A decoding
of m steps is not m worst steps in a row, and not m independent ones either. With the correlation
rho between the steps of one run its mean deviates by

    1 + (r - 1) * sqrt((1 + (m - 1) * rho) / m)

which is r for one step and falls to 1 + (r - 1) * sqrt(rho) for many: steps of one query are slow
together when the machine is shared, or where the law itself is off, so that the deviation never
averages out altogether. rho is measured with the law (``fit.correlation``).

The first work after idling takes longer (clocks, caches): the worst case of a prefill from its
start includes the law COLD, because nobody knows beforehand what runs before it.

Steps right behind a long prompt take longer on a GPU (law RECOVERY); what comes on top of the sum
counts as part of it, in the worst case too. It is measured with one sequence, and taken to be the
same for several.

Sequences that decode while another prompt is prefilled take turns with its chunks, so what both
take is the sum of the chunks and of the steps between them: no law of its own.
"""

from dataclasses import dataclass
from math import sqrt

from timebill_ros.query import QueryTiming
from timebill_ros.time_estimator import laws
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.laws import Behind, Law


def worst_factor(law: Law, samples: int) -> float:
    """Return how much longer than the law ``samples`` of it in a row may take together, >= 1."""
    if samples < 1:
        return 1.0
    return 1.0 + (law.worst_ratio - 1.0) * spread_of_mean(samples, law.correlation)


def spread_of_mean(samples: int, correlation: float) -> float:
    """Return how far the mean of ``samples`` (>= 1) in a row strays, relative to a single one."""
    return sqrt((1.0 + (samples - 1) * correlation) / samples)


@dataclass(frozen=True)
class TimeEstimator:
    """
    Seconds for each stage, for one set of coefficients and one precision tier.

    ``worst`` = True asks for the worst case as defined above, False for the expected time; a
    ``tier`` other than '' for another precision than the estimator's own.
    """

    coefficients: TimingCoefficients
    tier: str = ''

    @property
    def tiers(self) -> tuple[str, ...]:
        """Return the tiers that can be planned with, best first."""
        return self.coefficients.tiers

    def for_tier(self, tier: str) -> 'TimeEstimator':
        """Return the estimator of another tier."""
        return TimeEstimator(self.coefficients, tier)

    def law(self, name: str, tier: str = '', width: int = 1) -> Law:
        """Return a law of this tier, or of the one that is named."""
        return self.coefficients.law(name, tier or self.tier, width)

    def prefill_s(self, n_prompt: int, worst: bool = False, n_done: int = 0) -> float:
        """Return the time to prefill ``n_prompt`` tokens, of which ``n_done`` are done already."""
        law = self.law(laws.PREFILL)
        seconds = law.seconds(n_prompt, n_done)
        if not worst:
            return seconds
        return seconds * worst_factor(law, 1) + (0.0 if n_done else self.cold_s())

    def decode_s(self, n_cached: float, steps: int, worst: bool = False, tier: str = '',
                 width: int = 1, behind: Behind | None = None) -> float:
        """
        Return the time of ``steps`` decode steps, each of ``width`` sequences at once.

        ``n_cached``: tokens cached per sequence, their mean, before the first step; ``behind``:
        where that lies, None = long after any prompt.
        """
        law = self.law(laws.DECODE_STEP, tier, width)
        seconds = law.sum_steps(n_cached, steps) * (worst_factor(law, steps) if worst else 1.0)
        return seconds if behind is None else seconds + self.recovery_s(
            steps, behind, worst, tier)

    def recovery_s(self, steps: int, behind: Behind, worst: bool = False, tier: str = '') -> float:
        """Return what of ``decode_s`` is due to the prompt that the steps lie behind."""
        seconds = self.law(laws.RECOVERY, tier).behind(behind, steps)
        if not worst or not seconds:
            return seconds
        return seconds * worst_factor(self.law(laws.DECODE_STEP, tier), steps)

    def decoded_s(self, timing: QueryTiming, worst: bool = False) -> float:
        """Return the time of the steps that a query has made."""
        seconds, done = 0.0, 0
        for each in timing.stretches:
            seconds += self.decode_s(
                each.n_cached, each.steps, worst, each.tier, each.width,
                Behind(timing.n_prompt, done))
            done += each.steps
        return seconds

    def evict_s(self, n_prompt: int, worst: bool = False) -> float:
        """Return the time to choose and gather what an eviction keeps of ``n_prompt`` tokens."""
        return self._single_s(laws.EVICT, n_prompt, worst)

    def predict_s(self, n_tokens: int, worst: bool = False) -> float:
        """Return the time to predict the response's length from ``n_tokens`` of the prompt."""
        return self._single_s(laws.PREDICT, n_tokens, worst)

    def overhead_s(self, n_tokens: int, worst: bool = False) -> float:
        """Return the time around the model's work for a response of ``n_tokens``."""
        return self._single_s(laws.OVERHEAD, n_tokens, worst)

    def cold_s(self) -> float:
        """Return what the first work after idling costs on top, in the worst case."""
        law = self.law(laws.COLD)
        return law.seconds(0) * law.worst_ratio

    def _single_s(self, name: str, n_tokens: int, worst: bool) -> float:
        law = self.law(name)
        return law.seconds(n_tokens) * (worst_factor(law, 1) if worst else 1.0)
