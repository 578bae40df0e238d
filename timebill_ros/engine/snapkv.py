# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Which prompt positions to keep: SnapKV (arXiv 2404.14469), per layer and KV head.

Fixed here: window w = 32; softmax in float32 over all causal keys; sum over the window, mean over
the query heads of a group; average pool of 5, zero-padded; ties to the lower position; the whole
window is kept; kept positions ascend.
"""

from typing import Sequence

import torch
from torch import Tensor
import torch.nn.functional as F

from timebill_ros.budget.kept import SNAPKV_WINDOW

POOL = 5


class QueryWindow:
    """The rotated queries of the last w prompt tokens, gathered while the prompt is prefilled."""

    def __init__(self, n_layers: int, n_heads: int, head_dim: int, dtype: torch.dtype,
                 device: torch.device) -> None:
        """Reserve room for w queries in each layer."""
        shape = (n_layers, n_heads, SNAPKV_WINDOW, head_dim)
        self._queries = torch.zeros(shape, dtype=dtype, device=device)

    def push(self, layer: int, queries: Tensor) -> None:
        """Take the queries [n_heads, M, head_dim] of a chunk; all but the last w fall out."""
        window, count = self._queries[layer], queries.shape[1]
        if count < SNAPKV_WINDOW:
            window[:, :-count] = window[:, count:].clone()
        window[:, max(0, SNAPKV_WINDOW - count):] = queries[:, -SNAPKV_WINDOW:]

    def layer(self, index: int) -> Tensor:
        """Return one layer's queries, [n_heads, w, head_dim]."""
        return self._queries[index]


def kept_positions(window: QueryWindow, keys: Sequence[Tensor], scale: float,
                   n_kept: int) -> Tensor:
    """
    Score and select over all layers; ``keys`` holds each layer's [n_kv_heads, N_x, head_dim].

    Returns [n_layers, n_kv_heads, n_kept]; only one layer's attention is held at a time.
    """
    return torch.stack([
        select(layer_scores(window.layer(index), layer_keys, scale), n_kept)
        for index, layer_keys in enumerate(keys)])


def layer_scores(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """
    Return the pooled attention that a layer's window pays to each earlier position.

    ``queries`` [n_heads, w, head_dim] and ``keys`` [n_kv_heads, N_x, head_dim] are rotated; the
    window is the end of the prompt, N_x > w. The result is [n_kv_heads, N_x - w], float32.
    """
    n_kv_heads, n_prompt, head_dim = keys.shape
    n_heads, window, _ = queries.shape
    group = n_heads // n_kv_heads
    rows = queries.reshape(n_kv_heads, group * window, head_dim)
    logits = torch.matmul(rows, keys.transpose(1, 2)).float() * scale
    logits = logits.view(n_kv_heads, group, window, n_prompt)
    future = torch.ones(window, window, dtype=torch.bool, device=keys.device).triu(1)
    logits[..., n_prompt - window:].masked_fill_(future, -torch.inf)
    attention = torch.softmax(logits, -1)[..., :n_prompt - window].sum(2).mean(1)
    return F.avg_pool1d(attention[:, None], POOL, stride=1, padding=POOL // 2)[:, 0]


def select(scores: Tensor, n_kept: int) -> Tensor:
    """
    Return the positions to keep, ascending: the best n_kept - w and the whole window.

    ``scores`` [..., N_x - w]; the result is [..., n_kept]. Among equals the lower position wins.
    """
    n_scored = scores.shape[-1]
    n_best = n_kept - SNAPKV_WINDOW
    threshold = scores.topk(n_best, -1, sorted=False).values.amin(-1, keepdim=True)
    above, equal = scores > threshold, scores == threshold
    room = n_best - above.sum(-1, keepdim=True)
    kept = above | (equal & (equal.cumsum(-1) <= room))
    best = kept.nonzero()[:, -1].view(*scores.shape[:-1], n_best)
    window = torch.arange(n_scored, n_scored + SNAPKV_WINDOW, device=scores.device)
    return torch.cat((best, window.expand(*scores.shape[:-1], -1)), -1)
