# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What an eviction does to the cache, behind one interface."""

from typing import Protocol

import torch
from torch import Tensor

from timebill_ros.budget.kept import SNAPKV_WINDOW
from timebill_ros.engine.kv_cache import KVCache
from timebill_ros.engine.snapkv import select


class Eviction(Protocol):
    """Keeps the best entries of a prompt."""

    def keep(self, cache: KVCache, slot: int, scores: Tensor, n_kept: int) -> Tensor:
        """
        Keep the prompt's ``n_kept`` best entries, its window, and all of the response.

        ``scores`` [n_layers, n_kv_heads, n - w] are those of the prompt's n entries in the cache
        but the window; returns those of what is kept, [n_layers, n_kv_heads, n_kept - w].
        """


class PlainEviction:
    """By tensor code, on any device."""

    def keep(self, cache: KVCache, slot: int, scores: Tensor, n_kept: int) -> Tensor:
        """Keep them, as ``Eviction`` says."""
        entries = select(scores, n_kept)
        response = torch.arange(
            scores.shape[-1] + SNAPKV_WINDOW, cache.length[slot], device=scores.device)
        response = response.expand(*entries.shape[:-1], -1)
        cache.keep(slot, torch.cat((entries, response), -1))
        return scores.gather(-1, entries[..., :n_kept - SNAPKV_WINDOW])
