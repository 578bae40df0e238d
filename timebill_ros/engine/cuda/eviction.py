# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Eviction in two kernels: select, and move in place."""

from torch import Tensor

from timebill_ros.budget.kept import SNAPKV_WINDOW
from timebill_ros.engine.cuda.prompt_kernels import PromptKernels
from timebill_ros.engine.kv_cache import KVCache


class KernelEviction:
    """See ``engine.eviction.Eviction``."""

    def __init__(self, kernels: PromptKernels) -> None:
        """Take the kernels."""
        self._kernels = kernels

    def keep(self, cache: KVCache, slot: int, scores: Tensor, n_kept: int) -> Tensor:
        """Keep the best entries, as ``Eviction`` says."""
        n_scored, length = scores.shape[-1], cache.length[slot]
        best, kept_scores = self._kernels.select(scores, n_kept - SNAPKV_WINDOW)
        self._kernels.compact(cache.k[:, slot], cache.v[:, slot], best, n_scored, length)
        cache.length[slot] = best.shape[-1] + length - n_scored
        return kept_scores
