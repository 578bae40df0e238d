# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The smallest eviction ratio with which the worst case fits the budget (TimeBill, Eq. 11).

Solving  B = (N-1) * [p * ((1 - alpha)*N_x + (N-2)/2) + q]  for alpha, with N the worst-case
response length and B the time left for decoding once everything else is paid:

    alpha* = 1 - B / (p*N_x*(N-1)) + (N-2) / (2*N_x) + q / (p*N_x),  then clipped to [0, alpha_max]

(The paper prints the middle term as (N-2) / (2*p*N_x), which is not dimensionless, and has no
lower clip.) The form holds for one straight decode-step law and while (1 - alpha)*N_x is at least
window + 1; otherwise alpha comes from a search over the same sum. Either way whether it *fits* is
a separate answer, checked with that sum at the whole number of positions that the eviction will
keep.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, isnan, nan

from timebill_ros.budget.kept import kept_tokens, least_alpha, SNAPKV_WINDOW
from timebill_ros.budget.search import last_within
from timebill_ros.time_estimator.laws import Law


@dataclass(frozen=True)
class AlphaChoice:
    """The eviction ratio for one query."""

    alpha: float        # in [0, alpha_max]
    alpha_raw: float    # before clipping and rounding to whole positions; NaN = no such number
    n_kept: int         # prompt positions that stay in the cache
    fits: bool          # eviction and worst-case decoding take no longer than the budget


def select_alpha(
        step: Law, n_prompt: int, n_worst: int, budget_s: float, alpha_max: float,
        evict_s: float = 0.0, window: int = SNAPKV_WINDOW, least_gain: float = 0.0) -> AlphaChoice:
    """
    Return the smallest alpha whose worst case fits, else the cheapest and ``fits`` = False.

    Where nothing fits, an eviction that shortens the worst case by no more than the share
    ``least_gain`` is left out: it would cost quality and save next to nothing.

    ``step`` is the decode-step law to plan with (scaled to the worst case by the caller),
    ``n_worst`` >= 1 the worst-case response length in tokens, of which the prefill gives the
    first; ``budget_s`` what is left for eviction and decoding; ``evict_s`` what an eviction costs,
    whatever it keeps.
    """
    steps = max(0, n_worst - 1)

    def decode_s(n_kept: int) -> float:
        return step.sum_steps(n_kept, steps)

    fewest = kept_tokens(n_prompt, alpha_max, window)
    after_evict_s = budget_s - evict_s
    raw = raw_alpha(step, n_prompt, steps, after_evict_s)
    whole_s = decode_s(n_prompt)
    if whole_s <= budget_s:
        return AlphaChoice(0.0, raw, n_prompt, True)
    if fewest >= n_prompt or decode_s(fewest) > after_evict_s:
        gain_s = whole_s - evict_s - decode_s(fewest)
        evicting_helps = fewest < n_prompt and gain_s > least_gain * whole_s
        alpha, n_kept = (alpha_max, fewest) if evicting_helps else (0.0, n_prompt)
        return AlphaChoice(alpha, raw, n_kept, False)
    n_kept = _most_that_fits(
        lambda kept: decode_s(kept) <= after_evict_s, fewest, n_prompt, raw)
    return AlphaChoice(min(alpha_max, least_alpha(n_prompt, n_kept)), raw, n_kept, True)


def closed_form_alpha(p: float, q: float, n_prompt: int, n_worst: int, budget_s: float) -> float:
    """Return alpha* before clipping; NaN where it is not defined (N_x = 0, one token, or p = 0)."""
    steps = n_worst - 1
    if n_prompt < 1 or steps < 1 or p * n_prompt * steps == 0.0:
        return nan
    raw = (1.0 - budget_s / (p * n_prompt * steps)
           + (n_worst - 2) / (2.0 * n_prompt) + q / (p * n_prompt))
    return raw if isfinite(raw) else nan


def raw_alpha(step: Law, n_prompt: int, steps: int, budget_s: float) -> float:
    """
    Return alpha before clipping: the closed form where it holds, else by search.

    ``budget_s`` is what is left for ``steps`` decode steps with the first response token cached.
    """
    if n_prompt < 1 or steps < 1:
        return nan
    if step.is_affine:
        p, q = step.slope(0), step.seconds(0)
        return closed_form_alpha(p, q, n_prompt, steps + 1, budget_s)
    least_s, most_s = step.sum_steps(0.0, steps), step.sum_steps(n_prompt, steps)
    if least_s > budget_s or least_s == most_s:
        return nan
    if most_s <= budget_s:
        return 0.0
    low = last_within(
        lambda kept: step.sum_steps(kept, steps), 0, n_prompt, budget_s, least_s, most_s)
    low_s, high_s = step.sum_steps(low, steps), step.sum_steps(low + 1, steps)
    return 1.0 - (low + (budget_s - low_s) / (high_s - low_s)) / n_prompt


def _most_that_fits(
        fits: Callable[[int], bool], fewest: int, n_prompt: int, raw: float) -> int:
    """
    Return the largest number in [fewest, n_prompt) that fits, knowing that ``fewest`` does.

    Starts from the real solution ``raw``, so that two or three looks suffice; the last word has
    the sum itself.
    """
    guess = fewest if isnan(raw) else int((1.0 - raw) * n_prompt)
    low, high = fewest, n_prompt                   # low fits, high does not
    for kept in (guess, guess + 1, guess - 1):
        if low < kept < high:
            low, high = (kept, high) if fits(kept) else (low, kept)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
