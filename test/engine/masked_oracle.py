# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A slow reference: transformers with its full cache, SnapKV by numpy, evicted positions masked."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

WINDOW, POOL = 32, 5
Array = NDArray[Any]


class Seen:
    """What the oracle's attention saw, and what it is told to leave out: per layer."""

    def __init__(self) -> None:
        self.queries: dict[int, Array] = {}     # [heads, N, width]
        self.keys: dict[int, Array] = {}        # [kv heads, N, width]
        self.kept: dict[int, Array] = {}        # [kv heads, kept]; empty = everything
        self.n_prompt = 0

    def clear(self) -> None:
        """Forget everything: another model comes."""
        self.queries.clear()
        self.keys.clear()
        self.kept.clear()


SEEN = Seen()


def watched_attention(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float,
                      **_: Any) -> tuple[Any, None]:
    """Attend as the paper says, and leave out the prompt positions that SEEN does not keep."""
    layer = module.layer_idx
    SEEN.queries[layer], SEEN.keys[layer] = query[0].numpy(), key[0].numpy()
    group = query.shape[1] // key.shape[1]
    logits = query @ key.repeat_interleave(group, 1).transpose(2, 3) * scaling
    logits = logits if mask is None else logits + mask
    if layer in SEEN.kept:
        gone = torch.ones(key.shape[1], key.shape[2], dtype=torch.bool)
        gone[:, SEEN.n_prompt:] = False
        gone.scatter_(1, torch.from_numpy(SEEN.kept[layer]), False)
        logits = logits.masked_fill(gone.repeat_interleave(group, 0)[None, :, None], -torch.inf)
    out = torch.softmax(logits, -1) @ value.repeat_interleave(group, 1)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register('watched', watched_attention)
AttentionMaskInterface.register('watched', eager_mask)


def scores_by_numpy(queries: Array, keys: Array) -> list[Array]:
    """Return SnapKV's score of each position before the window, from first principles."""
    n_heads, n_prompt, width = queries.shape
    group = n_heads // keys.shape[0]
    result = []
    for kv_head in range(keys.shape[0]):
        score = np.zeros(n_prompt - WINDOW)
        for head in range(kv_head * group, (kv_head + 1) * group):
            for position in range(n_prompt - WINDOW, n_prompt):
                visible = keys[kv_head, :position + 1] @ queries[head, position] / np.sqrt(width)
                weight = np.exp(visible - visible.max())
                score += (weight / weight.sum())[:n_prompt - WINDOW] / group
        padded = np.pad(score, POOL // 2)
        result.append(np.array([padded[i:i + POOL].sum() / POOL for i in range(len(score))]))
    return result


def kept_by_numpy(queries: Array, keys: Array, n_kept: int) -> Array:
    """Return the positions that SnapKV keeps in one layer, [kv heads, kept]."""
    result = []
    for score in scores_by_numpy(queries, keys):
        order = sorted(range(len(score)), key=lambda i: (-np.float32(score[i]), i))
        window = range(len(score), len(score) + WINDOW)
        result.append(sorted(order[:n_kept - WINDOW]) + list(window))
    return np.array(result)


def assert_as_by_numpy(kept: Array, queries: Array, keys: Array, n_kept: int) -> None:
    """Compare a layer's kept positions; two may be exchanged if rounding decides between them."""
    expected = kept_by_numpy(queries, keys, n_kept)
    for ours, theirs, score in zip(kept, expected, scores_by_numpy(queries, keys)):
        exchanged = np.setxor1d(ours, theirs)
        assert len(exchanged) <= 4
        np.testing.assert_allclose(score[exchanged], min(score[theirs[:-WINDOW]]), rtol=1e-4)
