# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention over a slot of the cache; keys and values are never repeated."""

import torch
from torch import Tensor
import torch.nn.functional as F


def attend_one(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """
    Return the attention of one token over all ``n`` entries, [n_heads * head_dim].

    ``q`` [n_heads, head_dim]; ``k``, ``v`` [n_kv_heads, n, head_dim]. The query heads of a group
    become the query rows of their KV head: one token sees everything, so no mask tells them apart.
    """
    rows = q.view(1, k.shape[0], -1, q.shape[-1])
    return F.scaled_dot_product_attention(rows, k[None], v[None], scale=scale).reshape(-1)


def attend_chunk(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor) -> Tensor:
    """
    Return the attention of the M tokens that end the ``n`` entries, [M, n_heads * head_dim].

    ``q`` [n_heads, M, head_dim]; ``k``, ``v`` [n_kv_heads, n, head_dim]; ``mask`` from
    ``chunk_mask``.
    """
    first = q.shape[1] == k.shape[1]
    out = F.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=None if first else mask, is_causal=first,
        scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1).reshape(q.shape[1], -1)


def chunk_mask(n_rows: int, n_entries: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """
    Return which of ``n_entries`` each of the last ``n_rows`` tokens may see.

    On CUDA a description that the flash kernel takes; elsewhere what to add to the logits, 0 or
    -inf, [n_rows, n_entries] (of a bool mask every layer would make that anew).
    """
    if device.type == 'cuda':
        # not above: it brings torch's compiler along, which takes a second or two
        from torch.nn.attention.bias import causal_lower_right
        bias: Tensor = causal_lower_right(n_rows, n_entries)
        return bias
    hidden = torch.full((n_rows, n_entries), -torch.inf, dtype=dtype, device=device)
    return hidden.triu(n_entries - n_rows + 1)
