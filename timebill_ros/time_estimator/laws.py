# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The timing laws: seconds as functions of token counts, their derivatives and their sums.

The paper's laws (TimeBill, arXiv 2512.21859, execution time estimator):

    prefill      t(N_x)  = a*N_x^2 + b*N_x + c
    decode step  t(N_kv) = p*N_kv + q,            N_kv(i) = (1 - alpha)*N_x + i - 1
    decode       sum over i = 1..N-1 of t(N_kv(i))

and two forms for machines on which they do not hold: a constant, and straight lines between knots.
Every form is a polynomial of degree two or less on each of a few intervals, so one evaluation, one
derivative and one sum serve them all. Nowhere else is a law evaluated, differentiated or summed.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, inf, isfinite, isnan, nan
from typing import Any

PREFILL = 'prefill'            # of the prompt's length
DECODE_STEP = 'decode_step'    # of the tokens in the KV cache before the step
EVICT = 'evict'                # of the prompt's length
PREDICT = 'predict'            # of the predictor's prompt length
OVERHEAD = 'overhead'          # of the response's length: tokenise, plan, detokenise, messages
COLD = 'cold'                  # a constant: what the first work after idling costs more
NAMES = (PREFILL, DECODE_STEP, EVICT, PREDICT, OVERHEAD, COLD)

QUADRATIC = 'quadratic'        # [a, b, c]: a*n^2 + b*n + c
AFFINE = 'affine'              # [p, q]: p*n + q
CONSTANT = 'constant'          # [c]
PIECEWISE = 'piecewise'        # values at the knots; flat before the first, the last slope goes on
_N_COEFFICIENTS = {QUADRATIC: 3, AFFINE: 2, CONSTANT: 1}

Piece = tuple[float, float, float, float]   # start (tokens), a, b, c: a*n^2 + b*n + c from start on


@dataclass(frozen=True)
class Law:
    """One fitted law (``msg/TimingLaw``): seconds as a function of tokens, never decreasing."""

    law: str                             # one of NAMES
    form: str                            # QUADRATIC, AFFINE, CONSTANT or PIECEWISE
    coefficients: tuple[float, ...]      # in the order of the form, none negative
    knots: tuple[float, ...] = ()        # tokens, ascending; only for PIECEWISE
    tier: str = ''                       # precision tier it holds for; '' = every tier
    worst_ratio: float = 1.0             # upper quantile of measured / law of single samples
    mape: float = nan                    # mean absolute error / measured, held out; NaN = none
    samples: int = 0                     # samples behind the fit

    def __post_init__(self) -> None:
        """Refuse what cannot be a law; raises ValueError that names the field."""
        if self.law not in NAMES:
            raise ValueError(f'unknown law {self.law!r}; known: {", ".join(NAMES)}')
        _check_coefficients(self)
        if not (isfinite(self.worst_ratio) and self.worst_ratio >= 1.0):
            raise ValueError(f'{self.law}: worst_ratio {self.worst_ratio} is not a number >= 1')
        if not (isnan(self.mape) or 0.0 <= self.mape < inf):
            raise ValueError(f'{self.law}: mape {self.mape} is neither NaN nor >= 0')

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Return the polynomials of the law, each with the token count from which it holds."""
        if self.form == PIECEWISE:
            return _lines(self.knots, self.coefficients)
        a, b, c = ((0.0, 0.0, 0.0) + self.coefficients)[-3:]
        return ((-inf, a, b, c),)

    @property
    def is_affine(self) -> bool:
        """Tell whether one straight line holds everywhere, as the closed form of alpha needs."""
        return len(self.pieces) == 1 and self.pieces[0][1] == 0.0

    def seconds(self, n_tokens: float) -> float:
        """Return the law at ``n_tokens``."""
        _, a, b, c = self._piece(n_tokens)
        return (a * n_tokens + b) * n_tokens + c

    def slope(self, n_tokens: float) -> float:
        """Return the derivative at ``n_tokens`` in seconds per token (from the right at a knot)."""
        _, a, b, _ = self._piece(n_tokens)
        return 2.0 * a * n_tokens + b

    def sum_steps(self, n_first: float, steps: int) -> float:
        """
        Return the sum of ``steps`` terms of the law, at ``n_first``, ``n_first + 1``, ... (s).

        With the decode-step law, ``n_first`` = tokens cached before the first step and ``steps`` =
        N - 1 this is the paper's decode time (N-1) * [p * (n_first + (N-2)/2) + q].
        """
        total, done = 0.0, 0
        ends = [piece[0] for piece in self.pieces[1:]] + [inf]
        for (_, a, b, c), end in zip(self.pieces, ends):
            if done >= steps:
                break
            until = steps if end == inf else min(steps, max(done, ceil(end - n_first)))
            total += _sum_polynomial(a, b, c, n_first + done, until - done)
            done = until
        return total

    def scaled(self, factor: float) -> 'Law':
        """Return the same law with every time multiplied by ``factor`` >= 0."""
        times = tuple(factor * value for value in self.coefficients)
        return replace(self, coefficients=times)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON knows them (an unknown mape is null)."""
        return {
            'tier': self.tier, 'law': self.law, 'form': self.form,
            'coefficients': list(self.coefficients), 'knots': list(self.knots),
            'worst_ratio': self.worst_ratio,
            'mape': None if isnan(self.mape) else self.mape, 'samples': self.samples}

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> 'Law':
        """Build a law from ``to_dict``; raises ValueError on a wrong field."""
        known = {'tier', 'law', 'form', 'coefficients', 'knots', 'worst_ratio', 'mape', 'samples'}
        if not isinstance(fields, dict) or set(fields) != known:
            raise ValueError(f'a law needs exactly the fields {sorted(known)}')
        try:
            return Law(
                str(fields['law']), str(fields['form']), _floats(fields['coefficients']),
                _floats(fields['knots']), str(fields['tier']), float(fields['worst_ratio']),
                nan if fields['mape'] is None else float(fields['mape']), int(fields['samples']))
        except TypeError as error:
            raise ValueError(f'law {fields["law"]!r}: {error}') from error

    def _piece(self, n_tokens: float) -> Piece:
        for piece in reversed(self.pieces):
            if n_tokens >= piece[0]:
                return piece
        return self.pieces[0]


def _floats(values: list[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _check_coefficients(law: Law) -> None:
    if law.form != PIECEWISE and law.form not in _N_COEFFICIENTS:
        raise ValueError(f'{law.law}: unknown form {law.form!r}')
    expected = len(law.knots) if law.form == PIECEWISE else _N_COEFFICIENTS[law.form]
    if len(law.coefficients) != expected or expected == 0:
        raise ValueError(
            f'{law.law}: {len(law.coefficients)} coefficients, {law.form} needs {max(expected, 1)}')
    if not all(isfinite(value) and value >= 0.0 for value in law.coefficients):
        raise ValueError(f'{law.law}: coefficients {law.coefficients} are not all finite and >= 0')
    if law.form != PIECEWISE:
        if law.knots:
            raise ValueError(f'{law.law}: only {PIECEWISE} has knots')
        return
    if not all(isfinite(knot) for knot in law.knots) or not _ascending(law.knots, strictly=True):
        raise ValueError(f'{law.law}: knots {law.knots} are not ascending')
    if not _ascending(law.coefficients, strictly=False):
        raise ValueError(f'{law.law}: values at the knots decrease')


def _ascending(values: tuple[float, ...], strictly: bool) -> bool:
    pairs = zip(values, values[1:])
    return all(low < high or (not strictly and low == high) for low, high in pairs)


def _lines(knots: tuple[float, ...], values: tuple[float, ...]) -> tuple[Piece, ...]:
    pieces: list[Piece] = [(-inf, 0.0, 0.0, values[0])]
    for left, right, low, high in zip(knots, knots[1:], values, values[1:]):
        slope = (high - low) / (right - left)
        pieces.append((left, 0.0, slope, low - slope * left))
    return tuple(pieces)


def _sum_polynomial(a: float, b: float, c: float, first: float, count: int) -> float:
    """Sum a*n^2 + b*n + c over n = first, first + 1, ... (``count`` terms)."""
    linear = count * (count - 1) / 2.0                     # sum of j over j < count
    squares = linear * (2 * count - 1) / 3.0               # sum of j^2 over j < count
    at_first = (a * first + b) * first + c
    return count * at_first + (2.0 * a * first + b) * linear + a * squares
