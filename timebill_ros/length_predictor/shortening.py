# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How much of a prompt a predictor that reads prompts is given (TimeBill, section 3.2)."""

from typing import Callable, Sequence

_LEAST_TOKENS = 16      # fewer say nothing about the answer


def prompt_tokens_that_fit(
    n_prompt: int, most: int, predict_s: Callable[[int], float], prefill_s: float
) -> int:
    """
    Return N_p: the largest with predict_s(N_p) <= prefill_s, at most ``n_prompt`` and ``most``.

    ``predict_s`` is the law of the predictor's time, which grows with its argument; ``prefill_s``
    is the predicted prefill of the whole prompt. Where not even 16 tokens fit it is 16 (or the
    whole prompt, if that is shorter).
    """
    low, high = min(_LEAST_TOKENS, n_prompt, most), min(n_prompt, most)
    if predict_s(high) <= prefill_s:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if predict_s(middle) <= prefill_s:
            low = middle
        else:
            high = middle
    return low


def shorten(ids: Sequence[int], limit: int) -> list[int]:
    """
    Shorten a prompt to ``limit`` tokens: half from its head, half (and the odd one) from its tail.

    A prompt's head says who speaks and sets the task, its tail asks; what is dropped is the
    middle.
    """
    if limit < 1:
        raise ValueError(f'a prompt cannot be shortened to {limit} tokens')
    if len(ids) <= limit:
        return list(ids)
    head = limit // 2
    return list(ids[:head]) + list(ids[len(ids) - (limit - head) :])
