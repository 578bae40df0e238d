# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The forward pass as plain tensor code: a chunk of one prompt, or one token of each slot."""

from typing import Optional

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

    Positions come from the cache's logical ``position``, never from how many entries it holds.
    """

    def __init__(self, config: ModelConfig, weights: Weights, rope: RopeTable,
                 cache: KVCache, tap_layer: int = 0) -> None:
        """
        Take the parts; the rotary table is cast to the weights' dtype, as transformers does.

        The hidden states after ``tap_layer`` layers (0 = none) are left in ``tap``.
        """
        self._config = config
        self._weights = weights
        self._cache = cache
        dtype = weights.embed.dtype
        self._cos = rope.cos.to(dtype)
        self._sin = sign_sin(rope.sin).to(dtype)
        self._scale = float(config.head_dim ** -0.5)
        self._tap_layer = tap_layer
        self.tap: Optional[Tensor] = None        # [rows of the newest call, d_model]

    def prefill_chunk(self, slot: int, ids: Tensor, window: Optional[QueryWindow],
                      last: bool) -> Optional[Tensor]:
        """
        Run the next ``ids`` [M] of a prompt; with the last chunk return the logits [vocab_size].

        ``window`` collects the rotated queries that SnapKV needs.
        """
        cache, count = self._cache, ids.shape[0]
        position, entries = cache.position[slot], cache.length[slot] + count
        mask = chunk_mask(count, entries, self._cos.dtype, ids.device)
        cos = self._cos[position:position + count, None]
        sin = self._sin[position:position + count, None]
        x = F.embedding(ids, self._weights.embed)
        for index, layer in enumerate(self._weights.layers):
            q, k, v = (heads.transpose(0, 1) for heads in self._project(layer, x, cos, sin))
            cache.append(index, slot, k, v)
            if window is not None:
                window.push(index, q)
            keys, values = cache.k[index, slot, :, :entries], cache.v[index, slot, :, :entries]
            attended = attend_chunk(q, keys, values, self._scale, mask)
            x = self._feed_forward(layer, x + linear(attended, layer.o, layer.o_bias))
            if last and index + 1 == self._tap_layer:
                self.tap = x[-1:]
        cache.advance(slot, count)
        return self._logits(x[-1:])[0] if last else None

    def step(self, slots: list[int], ids: Tensor) -> Tensor:
        """Run one token of each slot, ``ids`` [B]; returns the logits [B, vocab_size]."""
        cache = self._cache
        positions = torch.tensor([cache.position[slot] for slot in slots], device=ids.device)
        cos, sin = self._cos[positions][:, None], self._sin[positions][:, None]
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
            x = self._feed_forward(layer, x + linear(attended, layer.o, layer.o_bias))
            if index + 1 == self._tap_layer:
                self.tap = x
        for slot in slots:
            cache.advance(slot, 1)
        return self._logits(x)

    def _project(self, layer: LayerWeights, x: Tensor, cos: Tensor,
                 sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return q [M, n_heads, D], k and v [M, n_kv_heads, D]; q and k are normed and rotated."""
        c = self._config
        qkv = linear(self._norm(x, layer.input_norm), layer.qkv, layer.qkv_bias)
        heads = qkv.view(x.shape[0], -1, c.head_dim)
        n_rotated = c.n_heads + c.n_kv_heads
        q, k, v = heads[:, :c.n_heads], heads[:, c.n_heads:n_rotated], heads[:, n_rotated:]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = self._norm(q, layer.q_norm), self._norm(k, layer.k_norm)
            return rotate(q, cos, sin), rotate(k, cos, sin), v
        rotated = rotate(heads[:, :n_rotated], cos, sin)
        return rotated[:, :c.n_heads], rotated[:, c.n_heads:], v

    def _feed_forward(self, layer: LayerWeights, x: Tensor) -> Tensor:
        gate_up = linear(self._norm(x, layer.post_norm), layer.gate_up, layer.gate_up_bias)
        gate, up = gate_up.chunk(2, -1)
        return x + linear(F.silu(gate) * up, layer.down, layer.down_bias)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._config.norm_eps)

    def _logits(self, x: Tensor) -> Tensor:
        return linear(self._norm(x, self._weights.final_norm), self._weights.head)
