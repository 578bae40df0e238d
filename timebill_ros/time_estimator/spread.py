# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
How far samples stray from their law, which worst cases are made of (``estimator``).

The fit has come closer to its own runs than it will to any others, so first what a run is off is
widened by the degrees of freedom that the fit has taken. Then two numbers hold it: the upper
quantile of measured / law over single samples, and the share of their variance that lies between
runs of samples and not within them. What a whole run has in common (another clock, the law itself
being off there) does not average out over the steps of a query.
"""

import numpy as np

from timebill_ros.time_estimator.least_squares import Array

WORST_QUANTILE = 0.99
LEAST_RUNS = 4              # with fewer no correlation can be told: 1 is assumed
_NORMAL_QUANTILE = 2.326    # the WORST_QUANTILE of a normal distribution


def unfitted(ratios: Array, runs: Array, coefficients: int) -> Array:
    """Return the ratios as if their law had not been fitted to them: runs further from 1."""
    _, run_of, counts = np.unique(runs, return_inverse=True, return_counts=True)
    mean = (np.bincount(run_of, ratios) / counts)[run_of]
    free = max(1, len(counts) - coefficients)
    return ratios + (mean - 1.0) * ((len(counts) / free) ** 0.5 - 1.0)


def worst_ratio(ratios: Array, runs: int, correlation: float) -> float:
    """
    Return the upper quantile; too few samples to have one are taken as normally spread.

    Samples of one run that are correlated are no more than the runs are.
    """
    count = len(ratios)
    seen = float(np.quantile(ratios, WORST_QUANTILE, method='higher'))  # of few: the largest
    independent = count / (1.0 + (count / runs - 1.0) * correlation)
    if independent * (1.0 - WORST_QUANTILE) >= 1.0:
        return max(1.0, seen)
    spread = float(ratios.std(ddof=1)) if count > 1 else 0.0
    quantile = float(ratios.mean()) + _NORMAL_QUANTILE * spread * (1.0 + 1.0 / independent) ** 0.5
    return max(1.0, seen, quantile)


def correlation(ratios: Array, runs: Array) -> float:
    """
    Return the share of the variance of ``ratios`` that lies between runs (one-way ANOVA).

    1 where there are too few runs of several samples to tell.
    """
    groups = [ratios[runs == run] for run in np.unique(runs)]
    groups = [each for each in groups if len(each) > 1]
    total = float(np.concatenate(groups).var()) if groups else 0.0
    if len(groups) < LEAST_RUNS or total == 0.0:
        return 1.0
    free = sum(len(each) - 1 for each in groups)
    within = sum(float(each.var()) * len(each) for each in groups) / free
    return min(1.0, max(0.0, 1.0 - within / total))
