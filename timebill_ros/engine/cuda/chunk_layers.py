# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The two halves of a layer on a chunk of a prompt, in as few kernels as torch has for them."""

from typing import Optional, Tuple

import torch
from torch import Tensor
import torch.nn.functional as F

from timebill_ros.engine.attention import attend_chunk
from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.rope import RopeTable, rotate, sign_sin
from timebill_ros.engine.weights import Weights

# Rows that go through the feed-forward at once: enough to fill any GPU, and a bound on its memory.
_ROWS = 8192
MAX_CHUNK = 32768       # tokens; a prompt up to here is a single chunk
_MIN_CHUNK = 512
_SHARE = 0.1            # of the free memory that a chunk may take


class ChunkLayers:
    """
    Computes what ``decoder.Decoder`` does for a chunk, with the residual added in the product.

    The sums are rounded once where the decoder rounds product and sum apart.
    """

    def __init__(self, config: ModelConfig, weights: Weights, rope: RopeTable) -> None:
        """Take the parts; the rotary table is cast to the weights' dtype."""
        self.config, self.weights = config, weights
        dtype = weights.embed.dtype
        self._cos = rope.cos.to(dtype)
        self._sin = sign_sin(rope.sin).to(dtype)
        self._scale = float(config.head_dim ** -0.5)

    def attend(self, index: int, x: Tensor, keys: Tensor, values: Tensor, start: int,
               mask: Tensor) -> Tensor:
        """
        Add the attention of layer ``index`` to ``x`` [M, d_model], in place.

        Keys and values [n_kv_heads, entries, D] take M entries from ``start`` on, which are the
        positions too. Returns the rotated queries [n_heads, M, D].
        """
        c, layer, count = self.config, self.weights.layers[index], x.shape[0]
        qkv = F.linear(self._norm(x, layer.input_norm), layer.qkv, layer.qkv_bias)
        heads = qkv.view(count, -1, c.head_dim)
        cos = self._cos[start:start + count, None]
        sin = self._sin[start:start + count, None]
        n_rotated = c.n_heads + c.n_kv_heads
        turned = heads[:, :n_rotated]
        if layer.q_norm is not None and layer.k_norm is not None:
            turned = torch.cat((self._norm(heads[:, :c.n_heads], layer.q_norm),
                                self._norm(heads[:, c.n_heads:n_rotated], layer.k_norm)), 1)
        turned = rotate(turned, cos, sin)
        end = start + count
        keys[:, start:end] = turned[:, c.n_heads:].transpose(0, 1)
        values[:, start:end] = heads[:, n_rotated:].transpose(0, 1)
        queries = turned[:, :c.n_heads].transpose(0, 1)
        attended = attend_chunk(queries, keys[:, :end], values[:, :end], self._scale, mask)
        _add_product(x, attended, layer.o, layer.o_bias)
        return queries

    def feed_forward(self, index: int, x: Tensor) -> None:
        """Add the feed-forward of layer ``index`` to ``x`` [M, d_model], in place."""
        layer = self.weights.layers[index]
        for rows in x.split(_ROWS):
            normed = self._norm(rows, layer.post_norm)
            gate, up = F.linear(normed, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            _add_product(rows, F.silu(gate).mul_(up), layer.down, layer.down_bias)

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [vocab_size] after the hidden state ``x`` [1, d_model]."""
        weights = self.weights
        return F.linear(self._norm(x, weights.final_norm), weights.head)[0]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.norm_eps)


def choose_chunk(config: ModelConfig, itemsize: int, free_bytes: int) -> Tuple[int, int]:
    """
    Return the tokens of a chunk, and the memory to leave to it beside the cache.

    As many as ``MAX_CHUNK`` if that takes at most ``_SHARE`` of ``free_bytes``.
    """
    heads = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    # hidden state, its norm, the attention's result; qkv and three tensors of its rotation
    token = itemsize * (2 * config.d_model + config.n_heads * config.head_dim + 4 * heads)
    feed_forward = itemsize * _ROWS * (3 * config.d_ff + config.d_model)
    room = int(_SHARE * free_bytes) - feed_forward
    chunk = min(MAX_CHUNK, max(_MIN_CHUNK, room // token))
    return chunk, feed_forward + chunk * token


def _add_product(x: Tensor, factor: Tensor, weight: Tensor, bias: Optional[Tensor]) -> None:
    """Add ``factor`` @ ``weight``.T + ``bias`` to ``x``, in place."""
    x.addmm_(factor, weight.t())
    if bias is not None:
        x += bias
