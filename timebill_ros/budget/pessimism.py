# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The worst-case response length: how far beyond its prediction a response is planned for."""

from math import ceil


def worst_length(n_predicted: int, factor: float, cap: int) -> int:
    """
    Return min(ceil(k * predicted length), cap) in tokens, at least 1.

    ``factor`` is the paper's pessimistic factor k >= 1; ``n_predicted`` 0 = no
    predictor ran, then the worst case is the cap.
    """
    if n_predicted < 1:
        return max(1, cap)
    return max(1, min(ceil(factor * n_predicted), cap))
