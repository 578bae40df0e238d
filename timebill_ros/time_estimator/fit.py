# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
From samples to a law: robust, non-negative, with its error on points that the fit did not see.

Rules, all on relative errors (2 ms off matter in a law of 5 ms, not in one of 5 s):

- Least squares on (law - t) / t with non-negative coefficients, so that no law falls anywhere.
- A disturbance only ever adds time. Samples slower than the law by more than OUTLIER_SIGMA robust
  standard deviations, and by OUTLIER_FLOOR at least, are left out and the law is fitted again. If
  more than OUTLIER_SHARE would go, the machine is like that, and all stay.
- mape: each inner measuring point is predicted by a fit that has not seen it.
- Where that error is above BAD_FIT, and above twice what samples of one and the same point differ
  by, another shape is taken if it has less than SHAPE_GAIN of it: a floor that ends in a slope
  (launch-bound, then bandwidth-bound), or straight lines between knots. Plateaus and stairs are
  not bent into a parabola.
- worst_ratio: the upper quantile of measured / law over the samples that stayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import combinations
from math import inf, isfinite, nan

import numpy as np
from numpy.typing import NDArray

from timebill_ros.time_estimator import laws
from timebill_ros.time_estimator.laws import AFFINE, CONSTANT, Law, PIECEWISE, QUADRATIC

FORM_OF = {
    laws.PREFILL: QUADRATIC, laws.DECODE_STEP: AFFINE, laws.EVICT: AFFINE,
    laws.PREDICT: QUADRATIC, laws.OVERHEAD: AFFINE, laws.COLD: CONSTANT}
WORST_QUANTILE = 0.99
OUTLIER_SIGMA = 4.0
OUTLIER_FLOOR = 0.10
OUTLIER_SHARE = 0.25
BAD_FIT = 0.02
SHAPE_GAIN = 0.75
MAX_KNOTS = 8
FLOOR_ENDS = 24             # places at which a floor may end, evenly on a logarithmic scale
_SIGMA_OF_MAD = 1.4826      # standard deviation / median absolute deviation, normal distribution
_NORMAL_QUANTILE = 2.326    # the WORST_QUANTILE of a normal distribution
_POWERS = {QUADRATIC: (2, 1, 0), AFFINE: (1, 0), CONSTANT: (0,)}
_ROUNDS = 10

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """One measured time of a law."""

    law: str                # one of laws.NAMES
    n_tokens: int           # what the law is a function of
    seconds: float
    n_done: int = 0         # prefill only: the time is that of the tokens from here on
    alpha: float = 0.0      # evict only: the ratio it was measured at
    tier: str = ''          # precision tier it was measured on; '' = the law has no tiers


@dataclass(frozen=True)
class _Data:
    """Samples of one law as columns."""

    n: Array
    done: Array
    t: Array

    def where(self, chosen: Mask) -> '_Data':
        return _Data(self.n[chosen], self.done[chosen], self.t[chosen])


class _Shape(Enum):
    PAPER = 1               # the form that the paper gives the law
    FLOOR = 2               # flat, then a slope
    LINES = 3               # straight between knots


@dataclass(frozen=True)
class _Fit:
    form: str
    coefficients: Array
    knots: Array
    kept: Mask              # samples that are no outliers
    error: float            # mean of what is left, relative

    def law(self, name: str) -> Law:
        return Law(
            name, self.form, tuple(self.coefficients.tolist()), tuple(self.knots.tolist()))

    def seconds(self, name: str, data: _Data) -> Array:
        law = self.law(name)
        return np.array([
            law.seconds(n, done) for n, done in zip(data.n, data.done)])


def fit_law(name: str, samples: Sequence[Sample], tier: str = '') -> Law:
    """
    Fit one law to its samples; those of other laws and tiers are passed over.

    Raises ValueError if there are none, or a time is not a positive number. Of a single measuring
    point comes a constant.
    """
    chosen = [sample for sample in samples if (sample.law, sample.tier) == (name, tier)]
    data = _Data(*(np.array([getattr(sample, column) for sample in chosen], float)
                   for column in ('n_tokens', 'n_done', 'seconds')))
    if not chosen or not all(isfinite(t) and t > 0.0 for t in data.t):
        raise ValueError(f'{name}: needs samples with times above 0')
    shape = _Shape.PAPER
    mape = _unseen_error(name, shape, data)
    if mape > max(BAD_FIT, 2.0 * _noise(data)):
        others = {each: _unseen_error(name, each, data) for each in (_Shape.FLOOR, _Shape.LINES)}
        best = min(others, key=lambda each: others[each])
        if others[best] < SHAPE_GAIN * mape:
            shape, mape = best, others[best]
    fit = _fit(name, shape, data)
    ratios = data.t[fit.kept] / fit.seconds(name, data.where(fit.kept))
    return replace(
        fit.law(name), tier=tier, worst_ratio=_worst_ratio(ratios), mape=mape,
        samples=int(fit.kept.sum()))


def _worst_ratio(ratios: Array) -> float:
    """Return the upper quantile; too few samples to have one are taken as normally spread."""
    count = len(ratios)
    if count * (1.0 - WORST_QUANTILE) >= 1.0:
        return max(1.0, float(np.quantile(ratios, WORST_QUANTILE, method='higher')))
    spread = float(ratios.std(ddof=1)) if count > 1 else 0.0
    quantile = float(ratios.mean()) + _NORMAL_QUANTILE * spread * (1.0 + 1.0 / count) ** 0.5
    return max(1.0, float(ratios.max()), quantile)


def _points(data: _Data) -> Array:
    return np.unique(np.stack([data.n, data.done], axis=1), axis=0)


def _noise(data: _Data) -> float:
    """Return the typical relative deviation of samples of one point; inf = never measured twice."""
    deviations: list[float] = []
    for n, done in _points(data):
        times = data.t[(data.n == n) & (data.done == done)]
        if len(times) > 2:
            deviations.append(float(np.median(np.abs(times / np.median(times) - 1.0))))
    return _SIGMA_OF_MAD * float(np.median(deviations)) if deviations else inf


def _unseen_error(name: str, shape: _Shape, data: _Data) -> float:
    """Return the mean error on inner points, each left out in turn; NaN = there is none."""
    points = _points(data)
    errors: list[float] = []
    for n, done in points[1:-1] if len(points) > 3 else []:
        unseen = (data.n == n) & (data.done == done)
        fit = _fit(name, shape, data.where(~unseen))
        predicted = fit.seconds(name, data.where(unseen))[0]
        typical = float(np.median(data.t[unseen]))
        errors.append(abs(predicted - typical) / typical)
    return float(np.mean(errors)) if errors else nan


def _fit(name: str, shape: _Shape, data: _Data) -> _Fit:
    if shape is _Shape.PAPER:
        form = FORM_OF[name] if len(_points(data)) > 1 else CONSTANT
        return _fit_form(form, data, np.empty(0))
    if shape is _Shape.LINES:
        return _fit_form(PIECEWISE, data, _knots(data.n))
    ends = np.geomspace(data.n.min(), data.n.max(), FLOOR_ENDS + 2)[1:-1]
    tried = [_fit_form(PIECEWISE, data, np.array([end, data.n.max()])) for end in ends]
    return min(tried, key=lambda fit: fit.error)


def _fit_form(form: str, data: _Data, knots: Array) -> _Fit:
    basis = _basis(form, data.n, knots) - np.where(
        data.done[:, None] > 0.0, _basis(form, data.done, knots), 0.0)
    weights = np.ones(len(data.t))
    for _ in range(_ROUNDS):    # least absolute errors, by weights: outliers do not pull the start
        residual = basis @ _solve(basis, data.t, weights) / data.t - 1.0
        weights = 1.0 / np.maximum(np.abs(residual), 1e-3) ** 0.5
    kept = np.zeros(len(data.t), bool)
    for _ in range(_ROUNDS):
        typical = np.median(np.abs(residual[kept] if kept.any() else residual))
        inside = -residual <= max(OUTLIER_FLOOR, OUTLIER_SIGMA * _SIGMA_OF_MAD * typical)
        if (~inside).mean() > OUTLIER_SHARE:
            inside = np.ones(len(data.t), bool)
        if np.array_equal(inside, kept):
            break
        kept = inside
        solution = _solve(basis, data.t, kept.astype(float))
        residual = basis @ solution / data.t - 1.0
    coefficients = np.cumsum(solution) if form == PIECEWISE else solution
    return _Fit(form, coefficients, knots, kept, float(np.abs(residual).mean()))


def _knots(n: Array) -> Array:
    points = np.unique(n)
    count = min(MAX_KNOTS, len(points))
    return points[np.linspace(0, len(points) - 1, count).round().astype(int)]


def _basis(form: str, n: Array, knots: Array) -> Array:
    """Return a column per coefficient; for lines: the first value, and the rise to each knot."""
    if form != PIECEWISE:
        return np.stack([n ** power for power in _POWERS[form]], axis=1)
    rises = [np.clip((n - low) / (high - low), 0.0, 1.0) for low, high in zip(knots, knots[1:])]
    return np.stack([np.ones_like(n), *rises], axis=1)


def _solve(basis: Array, t: Array, weights: Array) -> Array:
    """
    Minimise the weighted squares of (basis @ x - t) / t over x >= 0.

    The columns are few, so every set of them that may be above zero is tried: the best solution
    without constraints that happens to be non-negative is the constrained one.
    """
    scaled = basis / t[:, None] * weights[:, None]
    norms = np.linalg.norm(scaled, axis=0)
    norms[norms == 0.0] = 1.0
    best, least = np.zeros(basis.shape[1]), float(weights @ weights)
    for size in range(1, basis.shape[1] + 1):
        for columns in map(list, combinations(range(basis.shape[1]), size)):
            part = scaled[:, columns] / norms[columns]
            x = np.linalg.lstsq(part, weights, rcond=None)[0]
            rest = part @ x - weights
            if (x >= 0.0).all() and float(rest @ rest) < least:
                best, least = np.zeros(basis.shape[1]), float(rest @ rest)
                best[columns] = x / norms[columns]
    return best
