# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The forward pass of a Llama-like decoder as plain tensor code: a chunk of one prompt, or one token of each slot."""

from typing import List, Optional

import torch
from torch import Tensor
import torch.nn.functional as F

from timebill_ros.engine.attention import attend_chunk, attend_one, chunk_mask
from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.kv_cache import KVCache
from timebill_ros.engine.linear import linear
from timebill_ros.engine.rope import RopeTable, rotate, sign_sin
from timebill_ros.engine.snapkv import QueryWindow
from timebill_ros.engine.weights import LayerWeights, Weights


class Decoder:
    """
    Runs tokens through the layers and writes their keys and values into the cache.

    Positions always come from the cache's logical ``position``, never from how many entries it holds.
    """

    def __init__(self, config: ModelConfig, weights: Weights, rope: RopeTable, cache: KVCache) -> None:
        """Take the parts; nothing is copied but the rotary table, into the weights' dtype (as transformers does)."""
        self._config = config
        self._weights = weights
        self._cache = cache
        dtype = weights.embed.dtype
        self._cos = rope.cos.to(dtype)
        self._signed_sin = sign_sin(rope.sin).to(dtype)
        self._scale = float(config.head_dim ** -0.5)

    def prefill_chunk(self, slot: int, ids: Tensor, window: Optional[QueryWindow], last: bool) -> Optional[Tensor]:
        """
        Run the next ``ids`` [M] of a prompt; the last chunk returns the logits [vocab_size] of its last token.

        ``window`` collects the rotated queries that SnapKV needs.
        """
        cache, count = self._cache, ids.shape[0]
        start, position = cache.length[slot], cache.position[slot]
        entries = start + count
        mask = chunk_mask(count, entries, ids.device)
        cos, sin = self._cos[position:position + count, None], self._signed_sin[position:position + count, None]
        x = F.embedding(ids, self._weights.embed)
        for index, layer in enumerate(self._weights.layers):
            q, k, v = self._project(layer, x, cos, sin)
            q, k, v = q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1)
            cache.append(index, slot, k, v)
            if window is not None:
                window.push(index, q)
            keys, values = cache.k[index, slot, :, :entries], cache.v[index, slot, :, :entries]
            x = x + linear(attend_chunk(q, keys, values, self._scale, mask), layer.o, layer.o_bias)
            x = self._feed_forward(layer, x)
        cache.advance(slot, count)
        return self._logits(x[-1:])[0] if last else None

    def step(self, slots: List[int], ids: Tensor) -> Tensor:
        """Run one token ``ids`` [B] of each slot; returns the logits [B, vocab_size] of the tokens to follow."""
        cache = self._cache
        positions = torch.tensor([cache.position[slot] for slot in slots], device=ids.device)
        cos, sin = self._cos[positions][:, None], self._signed_sin[positions][:, None]
        x = F.embedding(ids, self._weights.embed)
        for index, layer in enumerate(self._weights.layers):
            q, k, v = self._project(layer, x, cos, sin)
            rows = []
            for row, slot in enumerate(slots):
                cache.append(index, slot, k[row, :, None], v[row, :, None])
                entries = cache.length[slot] + 1
                keys, values = cache.k[index, slot, :, :entries], cache.v[index, slot, :, :entries]
                rows.append(attend_one(q[row], keys, values, self._scale))
            attended = rows[0][None] if len(rows) == 1 else torch.stack(rows)
            x = x + linear(attended, layer.o, layer.o_bias)
            x = self._feed_forward(layer, x)
        for slot in slots:
            cache.advance(slot, 1)
        return self._logits(x)

    def _project(self, layer: LayerWeights, x: Tensor, cos: Tensor, sin: Tensor) -> 'tuple[Tensor, Tensor, Tensor]':
        """Return q [M, n_heads, D], k and v [M, n_kv_heads, D], q and k normed (if the model does) and rotated."""
        c = self._config
        heads = linear(self._norm(x, layer.input_norm), layer.qkv, layer.qkv_bias).view(x.shape[0], -1, c.head_dim)
        v = heads[:, c.n_heads + c.n_kv_heads:]
        if layer.q_norm is None or layer.k_norm is None:
            turned = rotate(heads[:, :c.n_heads + c.n_kv_heads], cos, sin)
            return turned[:, :c.n_heads], turned[:, c.n_heads:], v
        q = self._norm(heads[:, :c.n_heads], layer.q_norm)
        k = self._norm(heads[:, c.n_heads:c.n_heads + c.n_kv_heads], layer.k_norm)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def _feed_forward(self, layer: LayerWeights, x: Tensor) -> Tensor:
        gate_up = linear(self._norm(x, layer.post_norm), layer.gate_up, layer.gate_up_bias)
        gate, up = gate_up.chunk(2, -1)
        return x + linear(F.silu(gate) * up, layer.down, layer.down_bias)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._config.norm_eps)

    def _logits(self, x: Tensor) -> Tensor:
        return linear(self._norm(x, self._weights.final_norm), self._weights.head)
