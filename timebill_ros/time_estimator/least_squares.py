# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Robust, non-negative least squares on relative errors: the arithmetic behind ``fit``."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OUTLIER_SIGMA = 4.0
OUTLIER_FLOOR = 0.10
OUTLIER_SHARE = 0.25
HUBER_SIGMA = 1.345         # as good as the mean by 95 % where nothing is off
SIGMA_OF_MAD = 1.4826       # standard deviation / median absolute deviation, normal distribution
_ROUNDS = 10
_LEAST_MOVE = 1e-6          # relative change of a solution below which rounds end
_LEAST_ERROR = 1e-3         # what differs by less counts like a mean
_LEAST_SHARE = 1e-2         # of a time, that a fit on its way is taken to be

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Solution:
    """Coefficients, and the mean relative error."""

    x: Array
    error: float


def solve_robustly(basis: Array, t: Array) -> Solution:
    """
    Fit basis @ x to the times t (s), x >= 0, on errors relative to the fit.

    Huber's estimate (Robust Estimation of a Location Parameter, 1964): a mean of what lies near the
    middle, of the rest only the side it lies on counts. It starts from least absolute errors, and
    what is near is what half of them are within: measured anew it could grow with the fit's own
    way from one speed of a machine to between two.
    """
    x, law, error = np.zeros(basis.shape[1]), t, np.zeros(len(t))
    near = _LEAST_ERROR
    for number in range(2 * _ROUNDS):
        if number == _ROUNDS:
            near = max(near, HUBER_SIGMA * SIGMA_OF_MAD * float(np.median(np.abs(error))))
        weights = t / law / np.maximum(np.abs(error) / near, 1.0) ** 0.5
        before, x = x, solve(basis, t, weights, x)
        law = np.maximum(basis @ x, _LEAST_SHARE * t)
        error = t / law - 1.0
        if number >= _ROUNDS and np.abs(basis @ (x - before) / law).max() < _LEAST_MOVE:
            break
    return Solution(x, float(np.abs(error).mean()))


def not_outliers(error: Array) -> Mask:
    """
    Return which samples are no outliers, of ``error`` = time / law - 1.

    Outliers are slower than the law by OUTLIER_SIGMA robust standard deviations and by
    OUTLIER_FLOOR at least, unless that were more than OUTLIER_SHARE of all.
    """
    sigma = SIGMA_OF_MAD * float(np.median(np.abs(error)))
    kept: Mask = error <= max(OUTLIER_FLOOR, OUTLIER_SIGMA * sigma)
    return kept if (~kept).mean() <= OUTLIER_SHARE else np.ones(len(error), bool)


def solve(basis: Array, t: Array, weights: Array, start: Array) -> Array:
    """
    Minimise the weighted squares of (basis @ x - t) / t over x >= 0.

    The active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, ch. 23), on
    columns scaled to length one. It begins at ``start``, a solution for other weights, where mostly
    the same coefficients are above 0.
    """
    scaled = basis / t[:, None] * weights[:, None]
    norms = np.linalg.norm(scaled, axis=0)
    norms[norms == 0.0] = 1.0
    scaled = scaled / norms
    x = np.linalg.lstsq(scaled, weights, rcond=None)[0]
    if (x >= 0.0).all():
        return x / norms
    count = basis.shape[1]
    x = start * norms
    free = x > 0.0
    for _ in range(3 * count):
        while free.any():
            wanted = np.zeros(count)
            wanted[free] = np.linalg.lstsq(scaled[:, free], weights, rcond=None)[0]
            low = free & (wanted <= 0.0)
            if not low.any():
                x = wanted
                break
            step = np.min(x[low] / np.maximum(x[low] - wanted[low], 1e-300))
            x = x + step * (wanted - x)
            free &= x > 1e-12
            x[~free] = 0.0
        gradient = scaled.T @ (weights - scaled @ x)
        gradient[free] = -np.inf
        entering = int(np.argmax(gradient))
        if free.all() or gradient[entering] <= 1e-10 * np.linalg.norm(weights):
            break
        free[entering] = True
    return x / norms
