# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What a predictor answers: a distribution over response lengths."""

from dataclasses import dataclass
from functools import cached_property
from typing import Sequence

import numpy as np
from numpy.typing import NDArray

from timebill_ros.length_predictor.buckets import Buckets

# A quantile is the first length whose cumulated probability reaches q; sums of floats fall short
# of 1 by this much.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class LengthDistribution:
    """
    Probability of each response length N = 1 .. cap in tokens; the last is "cap or beyond".

    ``pmf`` [cap] sums to 1. ``width`` is the bucket width B that point predictions are rounded up
    to.
    """

    pmf: NDArray[np.float64]
    width: int

    @property
    def cap(self) -> int:
        """The largest length, tokens."""
        return len(self.pmf)

    @cached_property
    def _cumulated(self) -> NDArray[np.float64]:
        return np.cumsum(self.pmf)

    def quantile(self, q: float, n_max: int = 0) -> int:
        """
        Return the smallest length that N exceeds with probability at most 1 - q.

        With ``n_max`` it is at most that. Where the quantile is this distribution's own cap,
        nothing is known beyond it: then the answer is ``n_max``.
        """
        length = int(np.searchsorted(self._cumulated, q - _ROUNDING)) + 1
        if n_max <= 0:
            return min(length, self.cap)
        return n_max if length >= self.cap else min(length, n_max)

    def quantiles(
        self, probabilities: Sequence[float], n_max: int
    ) -> 'tuple[tuple[float, int], ...]':
        """Return (q, ``quantile(q, n_max)``) for ascending probabilities, in one go."""
        at = np.asarray(probabilities) - _ROUNDING
        lengths = np.searchsorted(self._cumulated, at) + 1
        return tuple(
            (q, n_max if n >= self.cap else min(int(n), n_max))
            for q, n in zip(probabilities, lengths)
        )

    def n_hat(self, n_max: int) -> int:
        """
        Return N_hat = min(N_max, n * B): the upper edge of the median's bucket (TimeBill, eq. 4).

        The paper takes the likeliest class. With a class of its own for the cap the likeliest
        class is often the cap at a probability of a third; the median's class has the smaller
        absolute error and keeps the upper edge.
        """
        median = self.quantile(0.5)
        return n_max if median >= self.cap else min(n_max, -(-median // self.width) * self.width)

    def mean(self) -> float:
        """Return the expected length, tokens; answers that reach the cap count as the cap."""
        return float(self.pmf @ np.arange(1, self.cap + 1))

    def n_left(self, n_generated: int, n_max: int) -> int:
        """
        Return the expected tokens to come after ``n_generated``, at least 1; 0 = none can be told.

        None can be told of a response that likely outgrows this distribution's own cap where
        ``n_max`` lets it.
        """
        if self.cap < n_max and self.quantile(0.5) >= self.cap:
            return 0
        return max(1, min(round(self.mean()), n_max) - n_generated)

    def shift(self, n_generated: int) -> 'LengthDistribution':
        """Return the distribution of N = ``n_generated`` + R where this is that of R."""
        pmf = np.zeros_like(self.pmf)
        kept = max(0, self.cap - n_generated)
        pmf[n_generated:] = self.pmf[:kept]
        pmf[-1] += self.pmf[kept:].sum()
        return LengthDistribution(pmf, self.width)


def upper_edges(pmf: NDArray[np.float64], width: int) -> NDArray[np.int64]:
    """Return N_hat of each row of ``pmf`` [rows, cap], with the cap as N_max."""
    median = (np.cumsum(pmf, 1) < 0.5 - _ROUNDING).sum(1) + 1
    return np.minimum(-(-median // width) * width, pmf.shape[1])


@dataclass
class Calibration:
    """
    From class probabilities to a calibrated distribution over lengths.

    ``within`` [cap] says how lengths lie inside their class (each class's part sums to 1): a class
    is 16 tokens wide, the answers in it are not spread evenly. ``knots`` are the values that the
    cumulated probability is mapped to at even steps from 0 to 1: the conformal correction, learnt
    on prompts that the heads did not see.
    """

    buckets: Buckets
    within: NDArray[np.float64]
    knots: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Keep what every prediction needs."""
        self.class_of_length = _class_of_length(self.buckets)     # [cap], from 0
        self._grid = np.linspace(0.0, 1.0, len(self.knots))

    def pmf(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return [rows, cap] for class probabilities [rows, classes]."""
        raw = self.raw_pmf(probabilities)
        cumulated = np.concatenate([np.zeros((len(raw), 1)), np.cumsum(raw, 1)], 1)
        mapped = np.interp(
            np.clip(cumulated, 0.0, 1.0), self._grid, self.knots
        )
        mapped[:, -1] = 1.0
        return np.diff(mapped, axis=1)

    def raw_pmf(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return [rows, cap] without the conformal correction."""
        return probabilities[:, self.class_of_length] * self.within

    def distribution(self, probabilities: NDArray[np.float64]) -> LengthDistribution:
        """Return the distribution for one row of class probabilities [classes]."""
        return LengthDistribution(self.pmf(probabilities[None])[0], self.buckets.width)


def within_classes(
    buckets: Buckets, lengths: Sequence[int], smoothing: float = 8.0
) -> NDArray[np.float64]:
    """Return how lengths lie inside their class, [cap]: counts, smoothed."""
    counts = np.bincount(np.asarray(lengths), minlength=buckets.cap + 1)[
        1 : buckets.cap + 1
    ].astype(np.float64)
    classes = _class_of_length(buckets)
    sizes = np.bincount(classes, minlength=buckets.n_classes)
    counts += smoothing / sizes[classes]
    return counts / np.bincount(classes, counts, buckets.n_classes)[classes]


def fit_calibration(
    buckets: Buckets,
    within: NDArray[np.float64],
    probabilities: NDArray[np.float64],
    lengths: NDArray[np.int64],
    n_knots: int = 401,
    seed: int = 0,
) -> Calibration:
    """
    Learn the conformal map on predictions [rows, classes] of heads for prompts unseen by them.

    The map is the empirical distribution function of the randomised PIT values: applied to a
    predicted cumulated probability it gives the share of prompts that indeed lay below. (Kuleshov
    et al., arXiv 1807.00263, with the randomisation that discrete lengths need.)
    """
    plain = Calibration(buckets, within, np.linspace(0.0, 1.0, n_knots))
    values = np.sort(randomised_pit(plain.raw_pmf(probabilities), lengths, seed))
    grid = np.linspace(0.0, 1.0, n_knots)
    knots = np.searchsorted(values, grid, side='right') / max(1, len(values))
    knots[0], knots[-1] = 0.0, 1.0
    return Calibration(buckets, within, np.maximum.accumulate(knots))


def randomised_pit(
    pmf: NDArray[np.float64], lengths: NDArray[np.int64], seed: int = 0
) -> NDArray[np.float64]:
    """Return F(N - 1) + V * P(N) per row, V uniform: uniform itself if all is calibrated."""
    rows = np.arange(len(lengths))
    at = np.minimum(np.asarray(lengths), pmf.shape[1]) - 1
    below = np.cumsum(pmf, 1)[rows, at] - pmf[rows, at]
    return below + np.random.default_rng(seed).random(len(rows)) * pmf[rows, at]


def _class_of_length(buckets: Buckets) -> NDArray[np.int64]:
    return buckets.label(np.arange(1, buckets.cap + 1)) - 1
