# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Grouped-query attention over a slot of the cache; keys and values are read where they lie, never repeated."""

import torch
from torch import Tensor
import torch.nn.functional as F


def attend_one(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """
    Return the attention of one token over all ``n`` entries, [n_heads * head_dim].

    ``q`` [n_heads, head_dim]; ``k``, ``v`` [n_kv_heads, n, head_dim]. The query heads of a group become the query
    rows of their KV head: with one token there is nothing to mask, so any number of rows may share the keys.
    """
    rows = q.view(1, k.shape[0], -1, q.shape[-1])
    return F.scaled_dot_product_attention(rows, k[None], v[None], scale=scale).reshape(-1)


def attend_chunk(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor) -> Tensor:
    """
    Return the attention of a chunk of M tokens that ends the ``n`` entries, [M, n_heads * head_dim].

    ``q`` [n_heads, M, head_dim]; ``k``, ``v`` [n_kv_heads, n, head_dim]; ``mask`` from ``chunk_mask``.
    """
    n_rows = q.shape[1]
    if n_rows == k.shape[1]:
        out = F.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=True)
    else:
        out = F.scaled_dot_product_attention(
            q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1).reshape(n_rows, -1)


def chunk_mask(n_rows: int, n_entries: int, device: torch.device) -> Tensor:
    """Return which of ``n_entries`` each of the last ``n_rows`` tokens may see, bool [n_rows, n_entries]."""
    return torch.ones((n_rows, n_entries), dtype=torch.bool, device=device).tril(n_entries - n_rows)
