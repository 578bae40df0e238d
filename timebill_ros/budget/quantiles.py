# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The predicted length distribution as the planner reads it: a few of its quantiles."""

from collections.abc import Sequence

# At which probabilities a predicted length distribution is handed to the planner.
PROBABILITIES = (
    0.01, *(round(0.04 * step, 2) for step in range(1, 23)),
    0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)
Quantiles = Sequence[tuple[float, int]]     # ascending (probability, tokens)


def beyond(quantiles: Quantiles, n_tokens: int) -> float:
    """Return the largest P(N > n) that the quantiles allow: 1 below the first of them."""
    reached = 0.0
    for probability, tokens in quantiles:
        if tokens > n_tokens:
            break
        reached = probability
    return 1.0 - reached


def given_longer_than(quantiles: Quantiles, n_tokens: int) -> Quantiles:
    """Return the quantiles of N, given that N > ``n_tokens``."""
    passed = max((p for p, tokens in quantiles if tokens <= n_tokens), default=0.0)
    if passed >= 1.0:
        return ()
    return tuple(((p - passed) / (1.0 - passed), tokens)
                 for p, tokens in quantiles if tokens > n_tokens)
