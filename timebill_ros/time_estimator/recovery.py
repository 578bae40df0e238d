# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The law RECOVERY: how much longer decode steps take right behind a prompt than later on.

A long prefill takes all the power that a GPU may draw, so that its clock falls (on an H200 from
1,980 to 1,545 MHz within 0.1 s), and it takes some 0.1 s of decoding until it is back. Steps that
compute more per byte feel it more: behind 4,096 tokens int4 by a tenth, bf16 by a fortieth. And the
first step of a response sets up, where later ones go ahead of their host.

So steps are measured as those of a response, numbered, behind prompts of all lengths, and fitted as
a law of the tokens in the cache plus this one, non-negative and robustly as all laws are. Behind
how long a prompt the clock has fallen as far as it does is searched. What is left when this law is
taken off are steps of one speed, which the law of the decode steps is fitted to.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from timebill_ros.time_estimator.fit import knots_among, lines, Sample
from timebill_ros.time_estimator.forms import share_behind
from timebill_ros.time_estimator.laws import Behind, DECODE_STEP, Law, RECOVERY, SATURATING
from timebill_ros.time_estimator.least_squares import Array, solve_robustly

KNOTS = (8.0, 24.0, 48.0)       # steps; what lies beyond the last is settled
LEAST_STEPS = 60                # in a row: fewer do not show where they lead to
BASE_KNOTS = 5                  # of what steps take without it
_LEAST_PROMPT = 512             # tokens, tried as those from which on it is whole
_TRIES = 17                     # up to the longest prompt that was prefilled


def fit_recoveries(samples: Sequence[Sample]) -> dict[str, Law]:
    """
    Fit the law of each tier whose steps were measured behind prompts, and enough in a row.

    Reads single-sequence decode steps that are numbered (``Sample.step``). Behind how long a prompt
    it is whole is a matter of the clock, and the same for all tiers.
    """
    own = [each for each in samples
           if each.law == DECODE_STEP and each.width == 1 and each.step]
    tiers = [tier for tier in dict.fromkeys(each.tier for each in own)
             if max(each.step for each in own if each.tier == tier) >= LEAST_STEPS]
    columns = [_Columns([each for each in own if each.tier == tier]) for tier in tiers]
    longest = max((each.prefilled for each in own), default=0)
    if not columns or longest < 2 * _LEAST_PROMPT:
        return {}
    tried = [[each.fit(whole) for each in columns]
             for whole in np.geomspace(_LEAST_PROMPT, longest, _TRIES).round()]
    best = min(tried, key=lambda laws: sum(error for _, error in laws))
    return {tier: replace(law, tier=tier) for tier, (law, _) in zip(tiers, best)}


class _Columns:
    """The steps of one tier as columns."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        n_tokens, self._seconds, step, self._prompt = (
            np.array([getattr(each, name) for each in samples], float)
            for name in ('n_tokens', 'seconds', 'step', 'prefilled'))
        base = lines(n_tokens, knots_among(n_tokens, BASE_KNOTS))
        self._others = np.column_stack([base, step == 1.0])
        self._steps = _risen(step) - _risen(step - 1.0)

    def fit(self, whole: float) -> tuple[Law, float]:
        """Return the law that is whole behind so many tokens, and its mean relative error."""
        share = np.array([share_behind((whole,), prompt) for prompt in self._prompt])
        solution = solve_robustly(
            np.hstack([self._others, share[:, None] * self._steps]), self._seconds)
        first, *rises = solution.x[self._others.shape[1] - 1:].tolist()
        return Law(
            RECOVERY, SATURATING, (first, *np.cumsum(rises).tolist()), (float(whole), *KNOTS),
            samples=len(share)), solution.error


def settled(samples: Iterable[Sample], recoveries: Mapping[str, Law]) -> list[Sample]:
    """
    Return the samples with the recovery taken off.

    Of steps whose recovery is not known, the first of a response is left out.
    """
    found = []
    for each in samples:
        law = recoveries.get(each.tier) if each.step and each.width == 1 else None
        if law is not None:
            extra_s = law.behind(Behind(each.prefilled, each.step - 1), 1)
            found.append(replace(each, seconds=max(each.seconds - extra_s, 1e-9)))
        elif each.step != 1:
            found.append(each)
    return found


def _risen(step: Array) -> Array:
    """Return a column per piece of ``KNOTS``: the share of it that lies before a step."""
    return np.stack([np.clip((step - low) / (high - low), 0.0, 1.0)
                     for low, high in zip((0.0, *KNOTS), KNOTS)], axis=1)
