# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
How many prompt positions an eviction ratio keeps: the one place that says so.

SnapKV (arXiv 2404.14469) always keeps its observation window, the last tokens of the prompt. The
planner predicts with this number and the engine evicts to it.
"""

from math import ceil

SNAPKV_WINDOW = 32
_ROUNDING = 1e-6    # alpha = 1 - k/n must keep k, although (1 - alpha)*n comes out a little above k


def kept_tokens(n_prompt: int, alpha: float, window: int = SNAPKV_WINDOW) -> int:
    """
    Return max(window + 1, ceil((1 - alpha) * n_prompt)), never more than the prompt has.

    A prompt not longer than the window is never evicted, nor is anything at ``alpha`` = 0.
    """
    if n_prompt <= window or alpha <= 0.0:
        return n_prompt
    return min(n_prompt, max(window + 1, ceil((1.0 - alpha) * n_prompt - _ROUNDING)))


def least_alpha(n_prompt: int, n_kept: int) -> float:
    """Return the smallest eviction ratio at which ``kept_tokens`` is ``n_kept``."""
    return 0.0 if n_kept >= n_prompt else 1.0 - n_kept / n_prompt
