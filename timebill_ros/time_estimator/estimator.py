# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The execution time estimator: seconds for each stage of a query, expected and worst case.

Worst case. A law's ``worst_ratio`` r is the upper quantile (0.99) of measured / law over *single*
samples. One prefill or one eviction is one sample: its worst case is r times the law. A decoding
of m steps is not m worst steps in a row; with the usual intra-class correlation rho between the
steps of one query its mean deviates by

    1 + (r - 1) * sqrt((1 + (m - 1) * rho) / m)

which is r for one step and falls to 1 + (r - 1) * sqrt(rho) for many: steps of one query are slow
together when the machine is shared, so the deviation never averages out altogether.
"""

from dataclasses import dataclass
from math import sqrt

from timebill_ros.time_estimator import laws
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.laws import Law

STEP_CORRELATION = 0.1      # rho above


def worst_factor(law: Law, samples: int) -> float:
    """Return how much longer than the law ``samples`` of it in a row may take together, >= 1."""
    return 1.0 + (law.worst_ratio - 1.0) * spread_of_mean(samples) if samples >= 1 else 1.0


def spread_of_mean(samples: int) -> float:
    """Return how far the mean of ``samples`` (>= 1) in a row strays, relative to a single one."""
    return sqrt((1.0 + (samples - 1) * STEP_CORRELATION) / samples)


@dataclass(frozen=True)
class TimeEstimator:
    """
    Seconds for each stage, for one set of coefficients and one precision tier.

    ``worst`` = True asks for the worst case as defined above, False for the expected time.
    """

    coefficients: TimingCoefficients
    tier: str = ''

    def law(self, name: str) -> Law:
        """Return a law of this tier."""
        return self.coefficients.law(name, self.tier)

    def prefill_s(self, n_prompt: int, worst: bool = False, n_done: int = 0) -> float:
        """Return the time to prefill ``n_prompt`` tokens, of which ``n_done`` are done already."""
        law = self.law(laws.PREFILL)
        seconds = law.seconds(n_prompt) - (law.seconds(n_done) if n_done else 0.0)
        return seconds * (worst_factor(law, 1) if worst else 1.0)

    def decode_s(self, n_cached: float, steps: int, worst: bool = False) -> float:
        """Return the time of ``steps`` decode steps, the first with ``n_cached`` tokens cached."""
        law = self.law(laws.DECODE_STEP)
        return law.sum_steps(n_cached, steps) * (worst_factor(law, steps) if worst else 1.0)

    def evict_s(self, n_prompt: int, worst: bool = False) -> float:
        """Return the time to choose and gather what an eviction keeps of ``n_prompt`` tokens."""
        law = self.law(laws.EVICT)
        return law.seconds(n_prompt) * (worst_factor(law, 1) if worst else 1.0)

    def overhead_s(self, n_tokens: int, worst: bool = False) -> float:
        """Return the time around the model's work for a response of ``n_tokens``."""
        law = self.law(laws.OVERHEAD)
        return law.seconds(n_tokens) * (worst_factor(law, 1) if worst else 1.0)

    def cold_s(self) -> float:
        """Return what the first work after idling costs on top."""
        return self.law(laws.COLD).seconds(0)
