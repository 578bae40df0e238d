# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The timing laws: seconds as functions of token counts, their derivatives and their sums.

The paper's laws (TimeBill, arXiv 2512.21859, execution time estimator):

    prefill      t(N_x)  = a*N_x^2 + b*N_x + c
    decode step  t(N_kv) = p*N_kv + q,            N_kv(i) = (1 - alpha)*N_x + i - 1
    decode       sum over i = 1..N-1 of t(N_kv(i))

and forms for machines on which they do not hold (``forms``). Every form is a polynomial of degree
two or less on each of a few intervals, so one evaluation, one derivative and one sum serve them
all. Nowhere else is a law evaluated, differentiated or summed.

The law RECOVERY comes on top of a sum of decode steps: under the power of a long prefill a GPU
lowers its clock, and takes some 0.1 s to raise it again.
"""

from bisect import bisect_right
from dataclasses import dataclass, fields, replace
from functools import cached_property
from math import ceil, inf, isnan, nan
from typing import Any, NamedTuple

from timebill_ros.time_estimator.forms import (
    AFFINE, CHUNKED, CONSTANT, fault, full_chunks, MOST, N_HEAD, Piece, piece_at, PIECEWISE,
    polynomials, QUADRATIC, rounded_up, SATURATING, share_behind, value_at)

__all__ = [
    'AFFINE', 'Behind', 'CHUNKED', 'COLD', 'CONSTANT', 'DECODE_STEP', 'EVICT', 'Law', 'Name',
    'NAMES', 'OVERHEAD', 'Piece', 'PIECEWISE', 'PREDICT', 'PREFILL', 'QUADRATIC', 'RECOVERY',
    'REEVICT', 'SATURATING']

PREFILL = 'prefill'            # of the prompt's length
DECODE_STEP = 'decode_step'    # of the mean tokens in the KV cache per sequence, before the step
EVICT = 'evict'                # of the prompt's length
REEVICT = 'reevict'            # of the prompt's length: a later eviction to fewer positions
PREDICT = 'predict'            # of the predictor's prompt length
OVERHEAD = 'overhead'          # of the response's length: tokenise, plan, detokenise, messages
COLD = 'cold'                  # a constant: what the first work after idling costs more
RECOVERY = 'recovery'          # of where decode steps lie behind their prompt: on top of them
NAMES = (PREFILL, DECODE_STEP, RECOVERY, EVICT, REEVICT, PREDICT, OVERHEAD, COLD)

Name = tuple[str, str, int]    # law, tier, width


class Behind(NamedTuple):
    """Where decode steps lie: behind so many steps that followed a prompt of so many tokens."""

    n_prompt: int
    done: int = 0


@dataclass(frozen=True)
class Law:
    """One fitted law (``msg/TimingLaw``): seconds as a function of tokens; it never decreases."""

    law: str                             # one of NAMES
    form: str                            # one of those in ``forms``
    coefficients: tuple[float, ...]      # in the order of the form, none negative
    knots: tuple[float, ...] = ()        # tokens, ascending; of PIECEWISE and CHUNKED
    tier: str = ''                       # precision tier it holds for; '' = every tier
    worst_ratio: float = 1.0             # upper quantile of measured / law of single samples
    mape: float = nan                    # mean absolute error / measured, held out; NaN = none
    samples: int = 0                     # samples behind the fit
    width: int = 1                       # sequences in one step; of DECODE_STEP only
    correlation: float = 1.0             # between the samples of one run, in [0, 1]

    def __post_init__(self) -> None:
        """Refuse what cannot be a law; raises ValueError that names the field."""
        if self.law not in NAMES:
            raise ValueError(f'unknown law {self.law!r}; known: {", ".join(NAMES)}')
        objection = fault(self.form, self.coefficients, self.knots)
        if objection:
            raise ValueError(f'{self.law}: {objection}')
        if not 1.0 <= self.worst_ratio <= MOST:
            raise ValueError(
                f'{self.law}: worst_ratio {self.worst_ratio} is not a number from 1 to {MOST:g}')
        if not (isnan(self.mape) or 0.0 <= self.mape < inf):
            raise ValueError(f'{self.law}: mape {self.mape} is neither NaN nor >= 0')
        if self.width < 1 or (self.width > 1 and self.law != DECODE_STEP):
            raise ValueError(f'{self.law}: width {self.width} is not possible')
        if not 0.0 <= self.correlation <= 1.0:
            raise ValueError(f'{self.law}: correlation {self.correlation} is not within 0 to 1')

    @property
    def name(self) -> Name:
        """Return what tells it from the other laws of one machine: law, tier, width."""
        return self.law, self.tier, self.width

    @property
    def title(self) -> str:
        """Return that for people: "decode_step int8 x4"."""
        wide = f'x{self.width}' if self.width > 1 else ''
        return ' '.join(part for part in (self.law, self.tier, wide) if part)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Return its polynomials, as ``forms.polynomials``."""
        return polynomials(self.form, self.coefficients, self.knots)

    @cached_property
    def _starts(self) -> tuple[float, ...]:
        return tuple(piece[0] for piece in self.pieces)

    @property
    def is_affine(self) -> bool:
        """Tell whether one straight line holds everywhere, as the closed form of alpha needs."""
        return (self.form not in (CHUNKED, SATURATING) and len(self.pieces) == 1
                and self.pieces[0][1] == 0.0)

    def seconds(self, n_tokens: float, n_done: float = 0) -> float:
        """Return the law at ``n_tokens``, of which ``n_done`` are done already and cost nothing."""
        if n_done and n_tokens <= n_done:
            return 0.0
        if self.form == CHUNKED:
            return self._chunks(n_tokens, n_done)
        return value_at(self.pieces, n_tokens) - (value_at(self.pieces, n_done) if n_done else 0.0)

    def slope(self, n_tokens: float) -> float:
        """
        Return the derivative at ``n_tokens`` in seconds per token (from the right at a knot).

        Stairs count as the slope that they climb.
        """
        if self.form == CHUNKED:
            before = full_chunks(self.knots[0], n_tokens) * self.knots[0]
            return 2.0 * self.coefficients[0] * n_tokens + piece_at(
                self.pieces, rounded_up(self.knots, n_tokens - before)[0])[2]
        _, a, b, _ = piece_at(self.pieces, n_tokens)
        return 2.0 * a * n_tokens + b

    def sum_steps(self, n_first: float, steps: int) -> float:
        """
        Return the sum of ``steps`` terms of the law, at ``n_first``, ``n_first + 1``, ... (s).

        With the decode-step law, ``n_first`` = tokens cached before the first step and ``steps`` =
        N - 1 this is the paper's decode time (N-1) * [p * (n_first + (N-2)/2) + q].
        """
        if steps <= 0:
            return 0.0
        if self.form == CHUNKED:
            return sum(self._chunks(n_first + step, 0) for step in range(steps))
        starts, pieces = self._starts, self.pieces
        last = len(pieces) - 1
        piece = bisect_right(starts, n_first) - 1 if last else 0
        if piece == last or n_first + steps <= starts[piece + 1]:
            _, a, b, c = pieces[piece]
            if a == 0.0:        # most sums are of one straight piece, and the planner makes many
                return steps * (b * (n_first + (steps - 1) / 2.0) + c)
            return _sum_polynomial(a, b, c, n_first, steps)
        total, done = 0.0, 0
        for index in range(piece, last + 1):
            _, a, b, c = pieces[index]
            until = steps if index == last else min(steps, ceil(starts[index + 1] - n_first))
            total += _sum_polynomial(a, b, c, n_first + done, until - done)
            done = until
            if done >= steps:
                break
        return total

    def behind(self, place: Behind, steps: float) -> float:
        """
        Return what ``steps`` decode steps at a place take longer than settled ones (s).

        Nothing by a law that is not SATURATING: there is none.
        """
        if self.form != SATURATING or steps <= 0:
            return 0.0
        seconds = self.coefficients[0] if place.done == 0 else 0.0
        share = share_behind(self.knots, place.n_prompt)
        if share and place.done < self.knots[-1]:
            seconds += share * (value_at(self.pieces, place.done + steps)
                                - value_at(self.pieces, place.done))
        return seconds

    @property
    def lasts_steps(self) -> float:
        """Return the steps behind a prompt after which ``behind`` adds nothing."""
        return self.knots[-1] if self.form == SATURATING else 0.0

    def scaled(self, factor: float) -> 'Law':
        """Return the same law with every time multiplied by ``factor`` >= 0."""
        times = tuple(factor * value for value in self.coefficients)
        return replace(self, coefficients=times)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON knows them (an unknown mape is null)."""
        return {
            **{each.name: getattr(self, each.name) for each in fields(self)},
            'coefficients': list(self.coefficients), 'knots': list(self.knots),
            'mape': None if isnan(self.mape) else self.mape}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> 'Law':
        """Build a law from ``to_dict``; raises ValueError on a wrong field."""
        known = {each.name for each in fields(Law)}
        if not isinstance(values, dict) or set(values) != known:
            raise ValueError(f'a law needs exactly the fields {sorted(known)}')
        try:
            return Law(
                str(values['law']), str(values['form']), _floats(values['coefficients']),
                _floats(values['knots']), str(values['tier']), float(values['worst_ratio']),
                nan if values['mape'] is None else float(values['mape']), int(values['samples']),
                int(values['width']), float(values['correlation']))
        except TypeError as error:
            raise ValueError(f'law {values["law"]!r}: {error}') from error

    def _chunks(self, n_tokens: float, n_done: float) -> float:
        """Return the time of the chunks from ``n_done`` on, as ``forms`` states it."""
        chunk, (a, e) = self.knots[0], self.coefficients[:N_HEAD]
        full = full_chunks(chunk, n_tokens - n_done)
        before = n_done + full * chunk
        products, attention = rounded_up(self.knots, n_tokens - before)
        fetched = (full + 1) * n_done + chunk * full * (full + 1) / 2.0     # tokens, all chunks
        seconds = a * ((before + attention) ** 2 - n_done ** 2) + e * fetched + value_at(
            self.pieces, products)
        if full:
            seconds += full * value_at(self.pieces, rounded_up(self.knots, chunk)[0])
        return seconds


def _floats(values: list[Any]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _sum_polynomial(a: float, b: float, c: float, first: float, count: int) -> float:
    """Sum a*n^2 + b*n + c over n = first, first + 1, ... (``count`` terms)."""
    linear = count * (count - 1) / 2.0                     # sum of j over j < count
    squares = linear * (2 * count - 1) / 3.0               # sum of j^2 over j < count
    at_first = (a * first + b) * first + c
    return count * at_first + (2.0 * a * first + b) * linear + a * squares
