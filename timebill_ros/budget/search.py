# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The largest whole number that fits, of a time that never decreases with it."""

from collections.abc import Callable


def last_within(
        seconds: Callable[[int], float], low: int, high: int, limit_s: float,
        low_s: float, high_s: float) -> int:
    """
    Return the largest n in [low, high) whose ``seconds``, never decreasing, are within the limit.

    ``low_s`` and ``high_s`` are those of ``low``, which is returned if nothing fits, and of
    ``high``, which are known to be beyond it. Interpolates, and halves where that gets nowhere.
    """
    stuck = 0
    while high - low > 1 and low_s <= limit_s:
        guess = (low + high) // 2
        if stuck < 2 and high_s > low_s:
            guess = low + int((high - low) * (limit_s - low_s) / (high_s - low_s))
            guess = min(max(guess, low + 1), high - 1)
        before, guess_s = high - low, seconds(guess)
        if guess_s <= limit_s:
            low, low_s = guess, guess_s
        else:
            high, high_s = guess, guess_s
        stuck = stuck + 1 if 2 * (high - low) > before else 0
    return low
