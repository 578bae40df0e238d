# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Cache and attention for large batches in transformers: no needless copy in a step.

The library's growing cache copies itself at every step, its masked attention copies the keys and
values once per query head, and cuDNN's attention plans anew for every cache length. At a thousand
rows each of these costs more than the model.
"""

from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel, SDPBackend
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer

NAME = 'timebill_batched'
_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class _SlotLayer(DynamicLayer):
    """One layer's keys and values: fixed buffers [rows, KV heads, capacity, head_dim]."""

    def __init__(self, cache: 'SlotCache', keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self._cache = cache
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write one position per row where the cache says; return views of what may be seen."""
        cache = self._cache
        self.keys[cache.rows, :, cache.position] = key_states[:, :, 0]
        self.values[cache.rows, :, cache.position] = value_states[:, :, 0]
        return self.keys[:, :, : cache.visible], self.values[:, :, : cache.visible]

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        """Return 0: positions are always given, the library need not derive them."""
        return 0


class SlotCache(DynamicCache):
    """
    A cache of ``capacity`` positions per row in which every row stands at a position of its own.

    ``position`` [rows] is where the step under way writes, ``visible`` how many positions
    attention is handed (under a mask). Buffers never move, so a step can be recorded.
    """

    def __init__(self, model: Any, rows: int, capacity: int) -> None:
        config = model.config
        super().__init__(config=config)
        heads = config.num_key_value_heads
        width = getattr(config, 'head_dim', None) or (
            config.hidden_size // config.num_attention_heads)
        shape = (rows, heads, capacity, width)
        made = {'dtype': model.dtype, 'device': model.device}
        self.rows = torch.arange(rows, device=model.device)
        self.position = torch.zeros(rows, dtype=torch.long, device=model.device)
        self.visible = capacity
        self.layers = [
            _SlotLayer(self, torch.zeros(shape, **made), torch.zeros(shape, **made))
            for _ in range(config.num_hidden_layers)
        ]

    def copy(self, prefilled: DynamicCache, rows: Tensor, width: int) -> None:
        """Take over ``width`` positions that a prefill of these ``rows`` has cached."""
        for mine, theirs in zip(self.layers, prefilled.layers):
            mine.keys[rows, :, :width] = theirs.keys
            mine.values[rows, :, :width] = theirs.values

    def select(self, rows: Tensor) -> None:
        """Keep only the given rows (indices)."""
        self.rows = self.rows[: len(rows)].clone()
        for layer in self.layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]


def batched_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Optional[Tensor],
    scaling: Optional[float] = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
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
