# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Which prompt positions to keep: SnapKV (arXiv 2404.14469), per layer and KV head.

Fixed here: window w = 32; softmax in float32 over all causal keys; sum over the window, mean over
the query heads of a group; average pool of 5, zero-padded; ties to the lower position; the whole
window is kept; kept positions ascend.
"""

from typing import Iterator

import torch
from torch import Tensor
import torch.nn.functional as F

from timebill_ros.budget.kept import SNAPKV_WINDOW

POOL = 5
_BYTES_PER_LOGIT = 8                        # logit and weight, while a layer is scored
SCORED_ON_CUDA_BYTES = 64 * 1024 ** 2
_SCORED_AT_ONCE_BYTES = {'cpu': 8 * 1024 ** 2, 'cuda': SCORED_ON_CUDA_BYTES}    # cpu: in caches


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

    @property
    def queries(self) -> Tensor:
        """Return the queries, [n_layers, n_heads, w, head_dim]."""
        return self._queries


def prompt_scores(window: QueryWindow, keys: Tensor, scale: float) -> Tensor:
    """
    Score the prompt over all layers; ``keys`` [n_layers, n_kv_heads, N_x, head_dim], N_x > w.

    Returns [n_layers, n_kv_heads, N_x - w], float32. Several layers are scored at once where their
    attention takes little memory.
    """
    return torch.cat([layer_scores(window.queries[layers], keys[layers], scale)
                      for layers in _at_once(keys, window.queries.shape[1])])


def layer_scores(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """
    Return the pooled attention that the window pays to each earlier position, layer by layer.

    ``queries`` [L, n_heads, w, head_dim] and ``keys`` [L, n_kv_heads, N_x, head_dim] are rotated;
    the window is the end of the prompt, N_x > w. The result is [L, n_kv_heads, N_x - w], float32.
    """
    window = queries.shape[2]
    future = torch.ones(window, window, dtype=torch.bool, device=keys.device).triu(1)
    return _pooled(_attention(queries, keys, future, scale)[..., :-window])


def padded_scores(queries: Tensor, keys: Tensor, window: Tensor, places: Tensor, shortest: int,
                  scale: float) -> Tensor:
    """
    Do what ``prompt_scores`` does where only the device knows how long the prompt is.

    It is the beginning of ``keys`` [L, n_kv_heads, n, head_dim], has at least ``shortest`` tokens,
    and ends with the positions ``window`` [w], whose queries are ``queries`` [L, n_heads, w,
    head_dim]. ``places`` [n] are 0, 1, 2, ... The result is [L, n_kv_heads, n], 0 from the window
    on; a prompt of w tokens or fewer has no scores.
    """
    seen_by_all = max(0, shortest - len(window))
    future = places[seen_by_all:] > window[:, None]
    scored = (places < window[0]).float()
    return torch.cat([
        _pooled(_attention(queries[layers], keys[layers], future, scale) * scored)
        for layers in _at_once(keys, queries.shape[1])])


def _at_once(keys: Tensor, n_heads: int) -> Iterator[slice]:
    """Yield the layers of ``keys`` [n_layers, _, n, _], as many at once as memory allows."""
    layer_bytes = n_heads * SNAPKV_WINDOW * keys.shape[2] * _BYTES_PER_LOGIT
    step = max(1, _SCORED_AT_ONCE_BYTES[keys.device.type] // layer_bytes)
    return (slice(first, first + step) for first in range(0, len(keys), step))


def _attention(queries: Tensor, keys: Tensor, future: Tensor, scale: float) -> Tensor:
    """
    Return the attention of a window, summed over it, mean over a KV head's query heads.

    ``queries`` [L, n_heads, w, head_dim], ``keys`` [L, n_kv_heads, n, head_dim]; ``future`` [w, m]
    tells which of the last m keys a query may not see. The result is [L, n_kv_heads, n], float32.
    """
    n_layers, n_kv_heads, n_keys, head_dim = keys.shape
    window, n_masked = future.shape
    rows = queries.reshape(n_layers * n_kv_heads, -1, head_dim)         # the group's heads * w
    columns = keys.reshape(n_layers * n_kv_heads, n_keys, head_dim).transpose(1, 2)
    logits = torch.baddbmm(rows.new_empty(1, 1, 1), rows, columns, beta=0, alpha=scale)
    tail = logits.view(len(rows), -1, window, n_keys)[..., n_keys - n_masked:]
    tail.masked_fill_(future, -torch.inf)
    attention = torch.softmax(logits, -1, dtype=torch.float32).sum(1)
    attention *= window / rows.shape[1]
    return attention.view(n_layers, n_kv_heads, n_keys)


def _pooled(attention: Tensor) -> Tensor:
    pooled = F.avg_pool1d(attention.flatten(0, 1)[:, None], POOL, stride=1, padding=POOL // 2)
    return pooled.view(attention.shape)


def select(scores: Tensor, n_kept: int) -> Tensor:
    """
    Return the entries to keep, ascending: the best n_kept - w and the whole window.

    ``scores`` [..., n - w] of n entries, of which the last w are the window; the result is
    [..., n_kept]. Among equals the lower one wins. Nothing here waits for a GPU.
    """
    n_scored = scores.shape[-1]
    n_best = n_kept - SNAPKV_WINDOW
    threshold = scores.topk(n_best, -1, sorted=False).values.amin(-1, keepdim=True)
    above, equal = scores > threshold, scores == threshold
    room = n_best - above.sum(-1, keepdim=True)
    kept = above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= room))
    rank = kept.cumsum(-1, dtype=torch.int32) - 1
    target = torch.where(kept, rank, n_best).long()         # what is not kept goes behind the end
    entries = torch.arange(n_scored + SNAPKV_WINDOW, device=scores.device)
    entries = entries.expand(*scores.shape[:-1], -1)
    best = torch.empty(*scores.shape[:-1], n_best + 1, dtype=torch.long, device=scores.device)
    best.scatter_(-1, target, entries[..., :n_scored])
    return torch.cat((best[..., :n_best], entries[..., n_scored:]), -1)
