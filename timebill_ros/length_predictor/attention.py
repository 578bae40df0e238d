# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Cache and attention for large batches in transformers: no needless copy in a step.

The library's growing cache copies itself at every step, its masked attention copies the keys and
values once per query head, and cuDNN's attention plans anew for every cache length. At a thousand
rows each of these costs more than the model.
"""

from typing import Any, Optional, Tuple

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel, SDPBackend
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

NAME = 'timebill_batched'
_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class _FixedLayer(DynamicLayer):
    """One layer's keys and values: buffers [rows, KV heads, capacity, head_dim]."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tuple[Tensor, Tensor]:
        """Append and return views of everything cached."""
        if not self.is_initialized:
            rows, heads, _, width = key_states.shape
            self.lazy_initialization(key_states, value_states)
            self.keys = key_states.new_empty(rows, heads, self._capacity, width)
            self.values = torch.empty_like(self.keys)
        end = self._length + key_states.shape[-2]
        self.keys[:, :, self._length : end] = key_states
        self.values[:, :, self._length : end] = value_states
        self._length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Return the number of cached positions."""
        return self._length

    def select(self, rows: Tensor) -> None:
        """Keep only the given rows."""
        self.keys = self.keys[rows]
        self.values = self.values[rows]


class BatchCache(DynamicCache):
    """A cache of ``capacity`` positions per row, whose rows can be dropped."""

    def __init__(self, config: Any, capacity: int) -> None:
        super().__init__(config=config)
        self.layers = [_FixedLayer(capacity) for _ in range(config.num_hidden_layers)]

    def select(self, rows: Tensor) -> None:
        """Keep only the given rows (indices)."""
        for layer in self.layers:
            layer.select(rows)


def batched_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Optional[Tensor],
    scaling: Optional[float] = None,
    **kwargs: Any,
) -> Tuple[Tensor, None]:
    """
    Attend causally (prefill, no mask) or under a mask (one query position per row).

    ``query`` [rows, heads, positions, head_dim]; in a decode step the query heads of a group
    become query positions of their KV head, so that keys and values are read once.
    """
    rows, heads, positions, width = query.shape
    with sdpa_kernel(_BACKENDS):
        if positions == 1:
            grouped = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
            out = torch.nn.functional.scaled_dot_product_attention(
                grouped, key, value, attn_mask=attention_mask, scale=scaling
            ).reshape(rows, 1, heads, width)
        else:
            if query.dtype == torch.float32:  # no fused kernel groups heads in float32
                key, value = (t.repeat_interleave(heads // t.shape[1], 1) for t in (key, value))
            out = torch.nn.functional.scaled_dot_product_attention(
                query, key, value, is_causal=True, scale=scaling, enable_gqa=heads != key.shape[1]
            ).transpose(1, 2)
    return out.contiguous(), None


AttentionInterface.register(NAME, batched_attention)
