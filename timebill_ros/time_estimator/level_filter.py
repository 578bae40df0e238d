# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Follows one ratio, measured / profile: slowly while it only strays, at once where it changed.

    level   weighted median of the newest ratios, weights halving every few of them: one outlier,
            however far off, moves nothing
    spread  1.4826 * weighted median of |y|, y = (ratio / level - 1) / spread_of_mean(steps): how
            far one single sample strays, in the terms in which the estimator takes worst cases
    change  two cumulative sums (Page, Continuous Inspection Schemes, Biometrika 41, 1954), one of
            each sign: S = max(0, S + y - SLACK) of log(ratio / level) in standard deviations, cut
            at MOST. Beyond ALARM the ratio is taken to have changed where the sum began to grow:
            the level is that of the samples since then. Three samples that are far off on the same
            side do that, two never do (a host that falters for a second makes two).
    return  A level away from 1 whose samples stray far would hide that the machine is as profiled
            again; two samples in a row within the profile's own spread of 1 say so.
"""

from collections import deque
from math import exp, inf, log
from typing import Any

import numpy as np

MAD_TO_SIGMA = 1.4826           # of a normal distribution
PRIOR_SAMPLES = 3               # samples that every level starts with, and anew after a change
SLACK = 0.5                     # standard deviations; half of the smallest change looked for
MOST = 3.0                      # that one sample counts
ALARM = 7.4                     # three that count MOST are beyond it
BEGUN = 1.0                     # a sum below it is noise, and no beginning of a change
LEAST_SIGMA = 0.02              # smaller changes are left to the median
RETURN_SIGMA = 2.0              # profiled standard deviations from 1 that count as returned
RETURN_SAMPLES = 2


class LevelFilter:
    """The newest ratios of one law."""

    def __init__(self, weights: np.ndarray, sigma: float) -> None:
        """
        Start at level 1; ``weights`` ascend to the newest sample's, as many as are remembered.

        ``sigma``: how far single samples stray at least, relative to the level.
        """
        self._weights = weights
        self._sigma = max(sigma, LEAST_SIGMA)
        self._ratios = deque([1.0] * PRIOR_SAMPLES, len(weights))
        self._spreads = deque([1.0] * PRIOR_SAMPLES, len(weights))
        self._sums = [0.0, 0.0]         # up, down
        self._lengths = [1, 1]          # samples since each began to grow
        self._as_profiled = 0           # newest samples in a row that are

    def level(self) -> float:
        """Return measured / profile now."""
        return _weighted_median(np.array(self._ratios), self._weights[-len(self._ratios):])

    def spread(self) -> float:
        """Return how far single samples stray from the level, relative to it."""
        strays = np.abs(np.array(self._ratios) / self.level() - 1.0) / np.array(self._spreads)
        return MAD_TO_SIGMA * _weighted_median(strays, self._weights[-len(strays):])

    def take(self, ratio: float, spread_of_mean: float) -> int:
        """
        Take in a sample, a mean that strays ``spread_of_mean`` times as far as a single one.

        Returns of how many samples the level is, if this one shows that it changed; else 0.
        """
        sigma = max(self.spread(), self._sigma) * spread_of_mean
        y = min(max(log(ratio / self.level()) / sigma, -MOST), MOST)
        near = RETURN_SIGMA * self._sigma
        is_near = abs(log(ratio)) <= near * spread_of_mean and abs(log(self.level())) > near
        self._as_profiled = self._as_profiled + 1 if is_near else 0
        self._ratios.append(ratio)
        self._spreads.append(spread_of_mean)
        for index, signed in enumerate((y, -y)):
            grows = self._sums[index] >= BEGUN
            self._lengths[index] = self._lengths[index] + 1 if grows else 1
            self._sums[index] = max(0.0, self._sums[index] + signed - SLACK)
        if self._as_profiled >= RETURN_SAMPLES:
            return self._return()
        return self._jump(self._longest()) if max(self._sums) > ALARM else 0

    def join(self) -> int:
        """
        Take one sample that is far off, or as profiled, as a change: another law has changed.

        Returns of how many samples the level is then; 0 = nothing speaks for it.
        """
        if self._as_profiled:
            return self._return()
        return self._jump(self._longest()) if max(self._sums) >= MOST - SLACK else 0

    def borrow(self, level: float) -> None:
        """Take the level from elsewhere; what is known of the spread stays."""
        self._begin_anew(level, 0)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``restore`` needs, as JSON knows it."""
        return {'ratios': list(self._ratios), 'spreads': list(self._spreads),
                'sums': list(self._sums), 'lengths': list(self._lengths),
                'as_profiled': self._as_profiled}

    def restore(self, fields: dict[str, Any]) -> None:
        """Go on where ``to_dict`` left off; raises ValueError on what it cannot have given."""
        ratios = [float(each) for each in fields['ratios']]
        spreads = [float(each) for each in fields['spreads']]
        sums = [float(each) for each in fields['sums']]
        lengths = [int(each) for each in fields['lengths']]
        as_profiled = int(fields['as_profiled'])
        if not all(0.0 < each < inf for each in (*ratios, *spreads)):
            raise ValueError('a ratio is not a positive number')
        if not ratios or len(ratios) != len(spreads) or not len(sums) == len(lengths) == 2:
            raise ValueError('the samples are incomplete')
        if min(*lengths, as_profiled + 1) < 1 or not all(0.0 <= each < inf for each in sums):
            raise ValueError('a sum is not a number >= 0 of so many samples')
        self._ratios = deque(ratios, len(self._weights))
        self._spreads = deque(spreads, len(self._weights))
        self._sums, self._lengths, self._as_profiled = sums, lengths, as_profiled

    def _longest(self) -> int:
        """Return how many samples ago the larger sum began to grow."""
        return self._lengths[self._sums[1] > self._sums[0]]

    def _return(self) -> int:
        """Begin anew with the newest samples that are as profiled; returns their number."""
        samples, self._as_profiled = self._as_profiled, 0
        return self._jump(samples)

    def _jump(self, samples: int) -> int:
        """Begin anew with the newest ``samples``; returns their number."""
        count = min(samples, len(self._ratios))
        newest = list(self._ratios)[-count:]
        self._begin_anew(exp(float(np.median(np.log(newest)))), count)
        self._sums, self._lengths = [0.0, 0.0], [1, 1]
        return count

    def _begin_anew(self, level: float, newest: int) -> None:
        """Keep the ``newest`` samples, and a few before, at the level: they hold the spread."""
        ratios, spreads = list(self._ratios), list(self._spreads)
        end = len(ratios) - newest
        first = max(0, end - PRIOR_SAMPLES)
        before = np.array(ratios[first:end])
        if len(before):
            before *= level / _weighted_median(before, self._weights[-len(before):])
        self._ratios.clear()
        self._spreads.clear()
        self._ratios.extend([*before.tolist(), *ratios[end:]])
        self._spreads.extend(spreads[first:])


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the value at half of the total weight, between samples by a straight line."""
    order = np.argsort(values, kind='stable')
    weights = weights[order]
    middles = np.cumsum(weights) - weights / 2.0
    return float(np.interp(weights.sum() / 2.0, middles, values[order]))
