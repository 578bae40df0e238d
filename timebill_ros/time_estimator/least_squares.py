# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Robust, non-negative least squares on relative errors: the arithmetic behind ``fit``."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OUTLIER_SIGMA = 4.0
OUTLIER_FLOOR = 0.10
OUTLIER_SHARE = 0.25
SIGMA_OF_MAD = 1.4826       # standard deviation / median absolute deviation, normal distribution
_ROUNDS = 10
_LEAST_MOVE = 1e-6          # relative change of a solution below which rounds end

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Solution:
    """Coefficients, which samples are no outliers, and the mean relative error on all."""

    x: Array
    kept: Mask
    error: float


def solve_robustly(basis: Array, t: Array) -> Solution:
    """
    Fit basis @ x to the times t (s), x >= 0, on relative errors.

    Starts from least absolute errors, so that outliers do not pull the start; then leaves out what
    is slower than the fit by OUTLIER_SIGMA robust standard deviations and by OUTLIER_FLOOR at
    least, unless that were more than OUTLIER_SHARE of all.
    """
    weights = np.ones(len(t))
    x = np.zeros(basis.shape[1])
    for _ in range(_ROUNDS):
        before, x = x, solve(basis, t, weights)
        residual = basis @ x / t - 1.0
        if np.abs(basis @ (x - before) / t).max() < _LEAST_MOVE:
            break
        weights = 1.0 / np.maximum(np.abs(residual), 1e-3) ** 0.5
    kept = np.zeros(len(t), bool)
    for _ in range(_ROUNDS):
        typical = np.median(np.abs(residual[kept] if kept.any() else residual))
        inside = -residual <= max(OUTLIER_FLOOR, OUTLIER_SIGMA * SIGMA_OF_MAD * typical)
        if (~inside).mean() > OUTLIER_SHARE:
            inside = np.ones(len(t), bool)
        if np.array_equal(inside, kept):
            break
        kept = inside
        x = solve(basis, t, kept.astype(float))
        residual = basis @ x / t - 1.0
    return Solution(x, kept, float(np.abs(residual).mean()))


def solve(basis: Array, t: Array, weights: Array) -> Array:
    """
    Minimise the weighted squares of (basis @ x - t) / t over x >= 0.

    The active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974, ch. 23), on
    the normal equations of columns scaled to length one.
    """
    scaled = basis / t[:, None] * weights[:, None]
    norms = np.linalg.norm(scaled, axis=0)
    norms[norms == 0.0] = 1.0
    scaled = scaled / norms
    x = np.linalg.lstsq(scaled, weights, rcond=None)[0]
    if (x >= 0.0).all():
        return x / norms
    count = basis.shape[1]
    x, free = np.zeros(count), np.zeros(count, bool)
    for _ in range(3 * count):
        gradient = scaled.T @ (weights - scaled @ x)
        gradient[free] = -np.inf
        entering = int(np.argmax(gradient))
        if free.all() or gradient[entering] <= 1e-10 * np.linalg.norm(weights):
            break
        free[entering] = True
        while True:
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
            if not free.any():
                break
    return x / norms
