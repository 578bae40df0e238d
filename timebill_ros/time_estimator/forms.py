# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The forms that a timing law may have, each as polynomials of degree two or less on intervals.

    quadratic   [a, b, c]            a*n^2 + b*n + c
    affine      [p, q]               p*n + q
    constant    [c]                  c
    piecewise   values at the knots  straight between them; flat before the first, the last slope
                                     goes on
    chunked     [a, e, g_1 .. g_k]   a prompt is prefilled in chunks of knots[0] tokens, the last
                                     one shorter. A chunk of m tokens behind d others takes
                                     g(m) + a*m*(2*d + m) + e*d: its share of the quadratic, what
                                     fetching the d tokens costs once, and g, piecewise with the
                                     values g_i at the knots from knots[4] on. m is rounded up: to
                                     the next of these knots where it is at most knots[3] (short
                                     prompts that are padded), else in g to a multiple of knots[1]
                                     (matrix products work in tiles), in the quadratic to one of
                                     knots[2] (attention is done for few lengths). g carries the
                                     floor of launch-bound chunks as well.
    saturating  [f, s_1 .. s_k]      what the first m decode steps behind a prompt take longer than
                                     later ones: f, the first one's setting up, and s, straight
                                     between 0 and the s_i at the steps knots[1] .. knots[k], then
                                     flat. s is whole behind knots[0] tokens of prompt or more,
                                     nothing up to half of them, straight between.
"""

from math import ceil, inf, isfinite

QUADRATIC = 'quadratic'
AFFINE = 'affine'
CONSTANT = 'constant'
PIECEWISE = 'piecewise'
CHUNKED = 'chunked'
SATURATING = 'saturating'
N_COEFFICIENTS = {QUADRATIC: 3, AFFINE: 2, CONSTANT: 1}
N_HEAD = 2          # coefficients of CHUNKED before those of g
MOST = 1e6          # seconds of a coefficient, or times the law: sums of more could overflow
MOST_TOKENS = 2**31 - 1
KNOTS_HEAD = 4      # and knots: tokens of a chunk, of a stair, of one of attention, padded up to
# coefficients and knots of a form before those that belong together
HEADS = {PIECEWISE: (0, 0), CHUNKED: (N_HEAD, KNOTS_HEAD), SATURATING: (1, 1)}

Piece = tuple[float, float, float, float]   # start (tokens), a, b, c: a*n^2 + b*n + c from start on
Numbers = tuple[float, ...]


def fault(form: str, coefficients: Numbers, knots: Numbers) -> str:
    """Return why these numbers cannot make a law; '' if they can."""
    if form not in N_COEFFICIENTS and form not in HEADS:
        return f'unknown form {form!r}'
    n_values, n_knots = HEADS.get(form, (0, 0))
    values, places = coefficients[n_values:], knots[n_knots:]
    expected = N_COEFFICIENTS.get(form, len(places))
    if len(values) != expected or expected == 0:
        needed = max(expected, 1) + n_values
        return f'{len(coefficients)} coefficients, {form} needs {needed}'
    if not all(isfinite(value) and value >= 0.0 for value in coefficients):
        return f'coefficients {coefficients} are not all finite and >= 0'
    if max(coefficients) > MOST:
        return f'coefficient {max(coefficients):g} exceeds {MOST:g} s'
    if form in N_COEFFICIENTS and knots:
        return f'{len(knots)} knots, {form} needs none'
    if not all(abs(knot) <= MOST_TOKENS for knot in knots) or not _ascending(places, by=1.0):
        return f'knots {knots} are not ascending, each by a token at least'
    if form in N_COEFFICIENTS:
        return ''
    if form == SATURATING and not (knots[0] > 0.0 and places[0] >= 1.0):
        return f'knots {knots} are not all above 0'
    if form == CHUNKED and min(knots[:3]) < 1.0:
        return f'a chunk of {knots[0]:g} tokens, in stairs of {knots[1]:g} and {knots[2]:g}'
    if form == CHUNKED and knots[3] > places[-1]:
        return f'prompts are padded up to {knots[3]:g} tokens, the last knot is {places[-1]:g}'
    return '' if _ascending(values) else 'values at the knots decrease'


def polynomials(form: str, coefficients: Numbers, knots: Numbers) -> tuple[Piece, ...]:
    """Return the pieces of a law; of CHUNKED those of g, of SATURATING those of s."""
    n_values, n_knots = HEADS.get(form, (0, 0))
    if form == SATURATING:      # from nothing to the last value, which stays
        last = knots[-1] + 1.0
        return _lines((0.0, *knots[n_knots:], last), (
            0.0, *coefficients[n_values:], coefficients[-1]))
    if form in HEADS:
        return _lines(knots[n_knots:], coefficients[n_values:])
    a, b, c = ((0.0, 0.0, 0.0) + coefficients)[-3:]
    return ((-inf, a, b, c),)


def piece_at(pieces: tuple[Piece, ...], n_tokens: float) -> Piece:
    """Return the piece that holds at ``n_tokens``."""
    for piece in reversed(pieces):
        if n_tokens >= piece[0]:
            return piece
    return pieces[0]


def value_at(pieces: tuple[Piece, ...], n_tokens: float) -> float:
    """Return the polynomial that holds at ``n_tokens``, there."""
    _, a, b, c = pieces[0] if len(pieces) == 1 else piece_at(pieces, n_tokens)
    return (a * n_tokens + b) * n_tokens + c


def rounded_up(knots: Numbers, n_tokens: float) -> tuple[float, float]:
    """Return what a chunk of ``n_tokens`` computes by the knots of CHUNKED: products, attention."""
    if n_tokens <= knots[3]:
        padded = next(knot for knot in knots[KNOTS_HEAD:] if knot >= n_tokens)
        return padded, padded
    return ceil(n_tokens / knots[1]) * knots[1], ceil(n_tokens / knots[2]) * knots[2]


def share_behind(knots: Numbers, n_prompt: float) -> float:
    """Return how much of s by the knots of SATURATING there is behind so many prompt tokens."""
    return min(1.0, max(0.0, 2.0 * n_prompt / knots[0] - 1.0))


def full_chunks(chunk: float, n_tokens: float) -> int:
    """Return how many chunks come before the last one of ``n_tokens``."""
    return max(0, ceil(n_tokens / chunk) - 1)


def _ascending(values: Numbers, by: float = 0.0) -> bool:
    return all(high - low >= by for low, high in zip(values, values[1:]))


def _lines(knots: Numbers, values: Numbers) -> tuple[Piece, ...]:
    pieces: list[Piece] = [(-inf, 0.0, 0.0, values[0])]
    for left, right, low, high in zip(knots, knots[1:], values, values[1:]):
        slope = (high - low) / (right - left)
        pieces.append((left, 0.0, slope, low - slope * left))
    return tuple(pieces)
