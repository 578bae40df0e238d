# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
From samples to a law: robust, non-negative, with its error on points that the fit did not see.

Rules, all on relative errors (2 ms off matter in a law of 5 ms, not in one of 5 s):

- Least squares on the errors of runs, relative to the law, with non-negative coefficients, so that
  no law falls anywhere (``least_squares``). A run is what was measured in a row and counts with its
  mean: so the sum over a response is right, whose first steps behind a prefill are slower.
- mape: each inner measuring point is predicted by a fit that has not seen it; of a length that
  prompts are padded to, one visit (each is of another prompt length) by a fit without that.
- Every law has the paper's form, unless that error is above GOOD_FIT and above what the noise of
  its points explains, and another form has less than SHAPE_GAIN of it: a floor that ends in a
  slope (launch-bound, then bandwidth-bound), straight lines between knots, or for the prefill the
  sum over its chunks, each with a floor, or lines, or stairs of a stated height (``forms``). Where
  short prompts are known to be padded the form that says so is taken.
- A law whose error stays above BAD_FIT is warned of (``doubts``): no form here holds.
- worst_ratio and correlation: how far samples stray from the law (``spread``).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timebill_ros.time_estimator import laws
from timebill_ros.time_estimator.forms import KNOTS_HEAD, rounded_up
from timebill_ros.time_estimator.laws import (
    AFFINE, CHUNKED, CONSTANT, Law, PIECEWISE, QUADRATIC)
from timebill_ros.time_estimator.least_squares import (
    Array, not_outliers, SIGMA_OF_MAD, Solution, solve_robustly)
from timebill_ros.time_estimator.spread import correlation, unfitted, worst_ratio

FORM_OF = {
    laws.PREFILL: QUADRATIC, laws.DECODE_STEP: AFFINE, laws.EVICT: AFFINE, laws.REEVICT: AFFINE,
    laws.PREDICT: QUADRATIC, laws.OVERHEAD: AFFINE, laws.COLD: CONSTANT}
GOOD_FIT = 0.003            # an error that no other form is worth looking for
NOISE_SIGMA = 4.0           # standard errors of a point that explain the paper's form being off
BAD_FIT = 0.05              # an error that people are told of
SHAPE_GAIN = 0.75
MAX_KNOTS = 12
FEW_KNOTS = 5               # tried as well: of noisy points they average more
BEYOND_KNOTS = 3            # of prefills longer than those that are padded
MAX_UNSEEN = 12             # points left out in turn, spread over all
FLOOR_ENDS = 12             # places tried for the end of a floor, and again around the best
LAST_STRETCH = 0.9          # of the longest: no knot but the last lies beyond (its slope goes on)
JUMPS = (64, 128, 256)      # tokens up to which attention of a step may be one stretch
STAIRS = (1, 16, 64, 128, 256)      # tokens of a stair; matrix products work in tiles like these
STAIRS_BEYOND = (1, 128)    # of prompts longer than those that are padded
_TYPICAL_TOKENS = 512       # prompt at which a law's error is weighed against the prefill
_ONCE_PER_PROMPT = (laws.EVICT, laws.REEVICT, laws.PREDICT)
_POWERS = {QUADRATIC: (2, 1, 0), AFFINE: (1, 0), CONSTANT: (0,)}


@dataclass(frozen=True)
class Sample:
    """One measured time of a law."""

    law: str                # one of laws.NAMES
    n_tokens: int           # what the law is a function of
    seconds: float
    n_done: int = 0         # prefill only: the time is that of the tokens from here on
    alpha: float = 0.0      # evict only: the ratio it was measured at
    tier: str = ''          # precision tier it was measured on; '' = the law has no tiers
    width: int = 1          # decode steps only: sequences in one step
    run: int = 0            # samples of one run were taken in a row
    point: int = 0          # the length that was meant, where n_tokens is a fresh one beside it
    step: int = 0           # of a decode step: its number in its response, from 1; 0 = not told
    prefilled: int = 0      # and tokens of a prompt that were prefilled right before the first


@dataclass(frozen=True)
class _Data:
    """Samples of one law as columns."""

    n: Array
    done: Array
    t: Array
    run: Array
    point: Array

    def where(self, chosen: NDArray[Any]) -> '_Data':
        return _Data(self.n[chosen], self.done[chosen], self.t[chosen], self.run[chosen],
                     self.point[chosen])


@dataclass(frozen=True)
class _Shape:
    """A form, and how its knots are found."""

    form: str
    floor: bool = False     # flat, then a slope
    chunk: int = 0          # CHUNKED only
    stair: int = 1
    attention_stair: int = 1
    most_knots: int = MAX_KNOTS
    padded: tuple[int, ...] = ()    # lengths that short prompts are padded to
    jump: int = 0           # PIECEWISE only: tokens beyond which it starts anew, higher


@dataclass(frozen=True)
class _Fit:
    form: str
    knots: Array
    solution: Solution

    def law(self, name: str) -> Law:
        x = self.solution.x
        if self.form == PIECEWISE:
            x = np.cumsum(x)
        elif self.form == CHUNKED:
            x = np.concatenate([x[:2], np.cumsum(x[2:])])
        return Law(name, self.form, tuple(x.tolist()), tuple(self.knots.tolist()))


def fit_law(
        name: str, samples: Sequence[Sample], tier: str = '', width: int = 1,
        chunk_tokens: int = 0, padded: Sequence[int] = (), attention_stair: int = 1) -> Law:
    """
    Fit one law to its samples; those of other laws, tiers and widths are passed over.

    ``chunk_tokens``: of a prefill that is done in chunks; ``padded``: the lengths, ascending, to
    which its short prompts are filled up; ``attention_stair``: of longer ones attention is done for
    a multiple of so many. Raises ValueError if there are no samples, or a time is not a positive
    number. Of a single measuring point comes a constant.
    """
    chosen = [each for each in samples if (each.law, each.tier, each.width) == (name, tier, width)]
    data = _Data(*(np.array([getattr(sample, column) for sample in chosen], float)
                   for column in ('n_tokens', 'n_done', 'seconds', 'run', 'point')))
    data = replace(data, point=np.where(data.point > 0.0, data.point, data.n))
    if not chosen or not all(isfinite(t) and t > 0.0 for t in data.t):
        raise ValueError(f'{name}: needs samples with times above 0')
    padded = tuple(padded[:sum(each < data.n.max() for each in padded) + 1])
    shape, mape = _choose_shape(name, data, chunk_tokens, padded, attention_stair)
    fit = _fit(shape, _means(data, shape.jump))
    law = fit.law(name)
    ratios = data.t / _seconds(law, data)
    kept = not_outliers(ratios - 1.0)
    fitted = int(np.count_nonzero(fit.solution.x)) + (shape.floor or shape.jump > 0)
    of_run = data.run[kept]
    ratios = unfitted(ratios[kept], of_run, fitted)
    together = correlation(ratios, of_run)
    return replace(
        law, tier=tier, width=width, mape=mape, samples=len(ratios), correlation=together,
        worst_ratio=worst_ratio(ratios, len(np.unique(of_run)), together))


def _means(data: _Data, jump: int = 0) -> _Data:
    """Return one sample for each run and side of a ``jump``: their means; 0 is no run."""
    runs = np.where(data.run > 0.0, data.run, -1.0 - np.arange(len(data.run)))
    _, first, run_of, counts = np.unique(
        2.0 * runs + (data.n > jump), return_index=True, return_inverse=True, return_counts=True)
    return replace(data.where(first), t=np.bincount(run_of, data.t) / counts,
                   n=np.bincount(run_of, data.n) / counts)


def _choose_shape(
        name: str, data: _Data, chunk: int, padded: tuple[int, ...],
        attention_stair: int) -> tuple[_Shape, float]:
    """Return the form of a law, and its error on points that it has not seen."""
    shape = _Shape(FORM_OF[name] if len(_points(data)) > 1 else CONSTANT)
    mape = _unseen_error(name, shape, _means(data))
    padded = padded if name == laws.PREFILL and shape.form != CONSTANT else ()
    if padded:
        # that prompts are padded is known, and not to be proved by the samples
        others = [
            _Shape(CHUNKED, False, chunk, stair, attention_stair, BEYOND_KNOTS, padded)
            for stair in STAIRS_BEYOND]
    elif mape > max(GOOD_FIT, NOISE_SIGMA * _noise(name, shape, data)):
        others = _other_shapes(name, chunk, attention_stair)
    else:
        return shape, mape
    errors = [_unseen_error(name, each, _means(data, each.jump)) for each in others]
    best = min(range(len(others)), key=lambda index: (isnan(errors[index]), errors[index]))
    if padded or errors[best] < SHAPE_GAIN * mape:
        return others[best], errors[best]
    return shape, mape


def doubts(fitted: Sequence[Law]) -> list[str]:
    """
    Return what people should know of laws that hold badly.

    What happens once per prompt may be off by that share of its prefill.
    """
    prefill_s = next(
        (law.seconds(_TYPICAL_TOKENS) for law in fitted if law.law == laws.PREFILL), 0.0)
    return [
        f'the law {law.title} is off by {law.mape:.0%} at lengths that it has not seen: '
        'the machine was not quiet, or no known form holds on it'
        for law in fitted
        if law.mape > BAD_FIT and (
            law.law not in _ONCE_PER_PROMPT
            or law.mape * law.seconds(_TYPICAL_TOKENS) > BAD_FIT * prefill_s)]


def _seconds(law: Law, data: _Data) -> Array:
    return np.array([law.seconds(n, done) for n, done in zip(data.n, data.done)])


def _points(data: _Data) -> Array:
    return np.unique(np.stack([data.point, data.done], axis=1), axis=0)


def _noise(name: str, shape: _Shape, data: _Data) -> float:
    """Return the typical relative error of a point's median; inf = no point has enough samples."""
    errors: list[float] = []
    ratios = data.t / _seconds(_fit(shape, data).law(name), data)
    for point, done in _points(data):
        own = ratios[(data.point == point) & (data.done == done)]
        if len(own) > 2:
            deviation = float(np.median(np.abs(own / np.median(own) - 1.0)))
            errors.append(SIGMA_OF_MAD * deviation / len(own) ** 0.5)
    return float(np.median(errors)) if errors else inf


def _unseen_error(name: str, shape: _Shape, data: _Data) -> float:
    """Return the mean error on inner points, each left out in turn; NaN = there is none."""
    points = _points(data)
    inner = points[1:-1] if len(points) > 3 else points[:0]
    if len(inner) > MAX_UNSEEN:
        inner = inner[np.linspace(0, len(inner) - 1, MAX_UNSEEN).round().astype(int)]
    if shape.floor:     # where the floor ends is searched once, with all points
        end = _fit(shape, data).knots
    errors: list[float] = []
    for point, done in inner:
        unseen = (data.point == point) & (data.done == done)
        if point in shape.padded:       # every such length is measured: one visit is left out
            runs = np.unique(data.run[unseen])
            if len(runs) < 2:
                continue
            unseen &= data.run == runs[len(runs) // 2]
        rest = data.where(~unseen)
        law = (_fit_form(shape.form, rest, end) if shape.floor else _fit(shape, rest)).law(name)
        left_out = data.where(unseen)
        errors.append(abs(float(np.median(_seconds(law, left_out) / left_out.t)) - 1.0))
    return float(np.mean(errors)) if errors else nan


def _other_shapes(name: str, chunk: int, attention_stair: int) -> list[_Shape]:
    """Return what to try where the paper's form does not hold."""
    found = [_Shape(PIECEWISE, floor=True), _Shape(PIECEWISE),
             _Shape(PIECEWISE, most_knots=FEW_KNOTS)]
    if name == laws.DECODE_STEP:
        found += [_Shape(PIECEWISE, jump=jump, most_knots=most)
                  for jump in JUMPS for most in (MAX_KNOTS, FEW_KNOTS)]
    if name == laws.PREFILL and chunk:
        for stair in STAIRS:
            found += [_Shape(CHUNKED, floor, chunk, stair, max(stair, attention_stair))
                      for floor in (True, False)]
    return found


def _fit(shape: _Shape, data: _Data) -> _Fit:
    if shape.form not in (PIECEWISE, CHUNKED):
        return _fit_form(shape.form, data, np.empty(0))
    places, head = data.n, np.empty(0)
    if shape.form == CHUNKED:
        places = np.minimum(shape.chunk, data.n - data.done)
        reach = max(shape.padded, default=0)
        head = np.array([shape.chunk, shape.stair, shape.attention_stair, reach], float)
        if shape.padded:
            # beyond, the quadratic bends and g needs a few knots only: as many as points would fit
            # them exactly, and leave the quadratic undetermined
            beyond = np.append(places[places > reach], reach + 1.0)
            own = knots_among(beyond, shape.most_knots) if len(beyond) > 1 else np.empty(0)
            return _fit_form(shape.form, data, np.concatenate([head, shape.padded, own]))
    if not shape.floor:
        return _fit_form(shape.form, data, np.concatenate([
            head, knots_among(places, shape.most_knots, shape.jump)]))
    return _fit_floor(shape.form, data, head, places)


def _fit_floor(form: str, data: _Data, head: Array, places: Array) -> _Fit:
    """Fit a floor and a slope; the floor's end is searched, then again around the best."""
    first, last = places.min(), places.max()
    best = _fit_form(form, data, np.concatenate([head, [last]]))
    if first >= LAST_STRETCH * last:
        return best
    ends = np.geomspace(first, LAST_STRETCH * last, FLOOR_ENDS + 2)
    for _ in range(2):
        tried = [_fit_form(form, data, np.concatenate([head, [end, last]])) for end in ends[1:-1]]
        index = min(range(FLOOR_ENDS), key=lambda each: tried[each].solution.error)
        best = min(best, tried[index], key=lambda fit: fit.solution.error)
        ends = np.geomspace(ends[index], ends[index + 2], FLOOR_ENDS + 2)
    return best


def _fit_form(form: str, data: _Data, knots: Array) -> _Fit:
    if form == CHUNKED:
        basis = _chunked_basis(data, knots)
    else:
        basis = _basis(form, data.n, knots) - np.where(
            data.done[:, None] > 0.0, _basis(form, data.done, knots), 0.0)
    return _Fit(form, knots, solve_robustly(basis, data.t))


def knots_among(n: Array, most: int, jump: int = 0) -> Array:
    """
    Return at most so many knots, spread over the points.

    With a ``jump`` between two of them, two more around it: those say what the points next to it
    would, which are left out. The last two are apart: between points of one length the slope that
    goes on beyond them would be noise.
    """
    points = np.unique(n.round())
    near_last = LAST_STRETCH * points[-1]
    points = np.append(points[points < near_last], points[-1])
    below, above = points[points <= jump], points[points > jump]
    around = np.empty(0)
    if len(below) and len(above) > 1 and jump + 1 < near_last:
        points, around = np.concatenate([below[:-1], above[1:]]), np.array([jump, jump + 1.0])
    count = min(most, len(points))
    return np.sort(np.concatenate([
        around, points[np.linspace(0, len(points) - 1, count).round().astype(int)]]))


def _basis(form: str, n: Array, knots: Array) -> Array:
    """Return a column per coefficient."""
    if form == PIECEWISE:
        return lines(n, knots)
    return np.stack([n ** power for power in _POWERS[form]], axis=1)


def lines(n: Array, knots: Array) -> Array:
    """Return the columns of straight lines: one for the first value, one for each knot's rise."""
    rises = [np.clip((n - low) / (high - low), 0.0, 1.0) for low, high in zip(knots, knots[1:])]
    return np.stack([np.ones_like(n), *rises], axis=1)


def _chunked_basis(data: _Data, knots: Array) -> Array:
    """Return the columns of CHUNKED, as ``Law`` sums its chunks: a, e, and those of g."""
    chunk = knots[0]
    up = np.vectorize(lambda count: rounded_up(tuple(knots), count), otypes=[float, float])
    length = data.n - data.done
    full = np.maximum(0.0, np.ceil(length / chunk) - 1.0)
    (products, attention), (whole, _) = up(length - full * chunk), up(np.array([chunk]))
    fetched = (full + 1.0) * data.done + chunk * full * (full + 1.0) / 2.0
    lines = full[:, None] * _basis(PIECEWISE, whole, knots[KNOTS_HEAD:]) + _basis(
        PIECEWISE, products, knots[KNOTS_HEAD:])
    computed = data.done + full * chunk + attention
    return np.column_stack([computed ** 2 - data.done ** 2, fetched, lines])
