# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The two halves of a layer on a chunk of a prompt, in few kernels."""

from typing import Optional

import torch
from torch import Tensor
import torch.nn.functional as F

from timebill_ros.engine.attention import attend_chunk, chunk_mask
from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cuda.prompt_kernels import PromptKernels
from timebill_ros.engine.cuda.quantize import dequantize
from timebill_ros.engine.rope import RopeTable, rotate, sign_sin
from timebill_ros.engine.weights import LayerWeights, Product, Weights

# Rows that go through the feed-forward at once: enough to fill any GPU, and a bound on its memory.
ROWS = 8192
MAX_CHUNK = 32768       # tokens; a prompt up to here is a single chunk
# Attention of a chunk without a graph is done for a multiple of so many rows: a plan for each of
# these lengths is built at the start, and for no other.
ATTENTION_STAIR = 512
_MIN_CHUNK = 512
_SHARE = 0.1            # of the free memory that a chunk may take


class ChunkLayers:
    """
    Computes what ``decoder.Decoder`` does for a chunk, with the residual added in the product.

    The sums are rounded once where the decoder rounds product and sum apart.
    """

    def __init__(self, config: ModelConfig, weights: Weights, rope: RopeTable,
                 kernels: Optional[PromptKernels] = None) -> None:
        """Take the parts; without ``kernels`` everything is plain tensor code."""
        self.config, self.weights, self.kernels = config, weights, kernels
        self._rope = rope
        dtype = weights.embed.dtype
        self._cos = rope.cos.to(dtype)
        self._sin = sign_sin(rope.sin).to(dtype)
        self.scale = float(config.head_dim ** -0.5)

    def attend(self, index: int, x: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """
        Add the attention of layer ``index`` to ``x`` [M, d_model], in place.

        Keys and values [n_kv_heads, entries, D] take M entries from ``start`` on, which are the
        positions too; all entries hold ordinary numbers. Returns the rotated queries
        [M, n_heads, D].
        """
        layer, count = self.weights.layers[index], len(x)
        qkv = F.linear(self._norm(x, layer.input_norm), self._dense(layer.qkv), layer.qkv_bias)
        if self.kernels is None:
            queries = self._turn(layer, qkv, keys, values, start)
        else:
            # Every length would have attention prepared anew, for milliseconds, and kept for good.
            rows = min(attention_rows(count), keys.shape[1]) if start == 0 else count
            queries = qkv.new_empty((rows, self.config.n_heads, self.config.head_dim))
            queries[count:].zero_()
            self.kernels.turn(qkv, queries, keys, values, start, self._rope.cos, self._rope.sin,
                              layer.q_norm, layer.k_norm, self.config.norm_eps)
        attended = self.attention(queries, keys, values, start)[:count]
        _add_product(x, attended, self._dense(layer.o), layer.o_bias)
        return queries[:count]

    def attention(self, queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
        """Return causal attention [M, n_heads * D] of the entries from ``start`` on."""
        rows, end = queries.transpose(0, 1), start + len(queries)
        keys, values = keys[:, :end], values[:, :end]
        if start > 0:
            mask = chunk_mask(len(queries), end, queries.dtype, queries.device)
            return attend_chunk(rows, keys, values, self.scale, mask)
        out = F.scaled_dot_product_attention(
            rows[None], keys[None], values[None], is_causal=True, scale=self.scale,
            enable_gqa=True)
        return out[0].transpose(0, 1).reshape(len(queries), -1)

    def feed_forward(self, index: int, x: Tensor) -> None:
        """Add the feed-forward of layer ``index`` to ``x`` [M <= ROWS, d_model], in place."""
        layer = self.weights.layers[index]
        normed = self._norm(x, layer.post_norm)
        gate_up = F.linear(normed, self._dense(layer.gate_up), layer.gate_up_bias)
        if self.kernels is None:
            gate, up = gate_up.chunk(2, -1)
            gated = F.silu(gate).mul_(up)
        else:
            gated = self.kernels.gate(gate_up)
        _add_product(x, gated, self._dense(layer.down), layer.down_bias)

    def attend_work(self, count: int, start: int = 0) -> float:
        """Return the operations of ``attend`` for ``count`` tokens behind ``start`` others."""
        c = self.config
        width = c.n_heads * c.head_dim
        products = 4.0 * c.d_model * (width + c.n_kv_heads * c.head_dim)
        return count * (products + 4.0 * width * (start + count / 2))

    def feed_forward_work(self, count: int) -> float:
        """Return the operations of ``feed_forward`` for ``count`` tokens."""
        return 6.0 * count * self.config.d_model * self.config.d_ff

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits [vocab_size] after the hidden state ``x`` [1, d_model]."""
        normed, head = self._norm(x, self.weights.final_norm), self.weights.head
        if isinstance(head, Tensor):
            return F.linear(normed, head)[0]
        assert self.weights.scratch is not None
        at_once = self.weights.scratch.numel() // (4 * head.k) * 4
        return torch.cat([
            F.linear(normed, self._dense(head, row, min(at_once, head.n - row)))[0]
            for row in range(0, head.n, at_once)])

    def _dense(self, matrix: Product, first_row: int = 0, rows: int = 0) -> Tensor:
        """Return a matrix as bf16, or some rows of it; valid until the next call."""
        if isinstance(matrix, Tensor):
            return matrix
        rows = rows or matrix.n
        if self.kernels is None:
            return dequantize(matrix)[first_row:first_row + rows]
        assert self.weights.scratch is not None
        out = self.weights.scratch[:rows * matrix.k].view(rows, matrix.k)
        self.kernels.dequantize(matrix, first_row, out)
        return out

    def _turn(self, layer: LayerWeights, qkv: Tensor, keys: Tensor, values: Tensor,
              start: int) -> Tensor:
        """Do what ``PromptKernels.turn`` does; returns the queries [M, n_heads, D]."""
        c, end = self.config, start + len(qkv)
        heads = qkv.view(len(qkv), -1, c.head_dim)
        n_rotated = c.n_heads + c.n_kv_heads
        turned = heads[:, :n_rotated]
        if layer.q_norm is not None and layer.k_norm is not None:
            turned = torch.cat((self._norm(heads[:, :c.n_heads], layer.q_norm),
                                self._norm(heads[:, c.n_heads:n_rotated], layer.k_norm)), 1)
        turned = rotate(turned, self._cos[start:end, None], self._sin[start:end, None])
        keys[:, start:end] = turned[:, c.n_heads:].transpose(0, 1)
        values[:, start:end] = heads[:, n_rotated:].transpose(0, 1)
        return turned[:, :c.n_heads]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.norm_eps)


def attention_rows(count: int) -> int:
    """Return the rows that attention is done for instead of ``count``: few lengths serve all."""
    return -(-count // ATTENTION_STAIR) * ATTENTION_STAIR


def choose_chunk(config: ModelConfig, itemsize: int, free_bytes: int) -> tuple[int, int]:
    """
    Return the tokens of a chunk, and the memory to leave to it beside the cache.

    As many as ``MAX_CHUNK`` if that takes at most ``_SHARE`` of ``free_bytes``.
    """
    token, row = _working_bytes(config, itemsize)
    room = int(_SHARE * free_bytes) - ROWS * row
    chunk = min(MAX_CHUNK, max(_MIN_CHUNK, room // token))
    return chunk, ROWS * row + chunk * token


def working_bytes(config: ModelConfig, itemsize: int, tokens: int) -> int:
    """Return the memory that ``tokens`` take on their way through the layers."""
    token, row = _working_bytes(config, itemsize)
    return tokens * token + min(tokens, ROWS) * row


def _working_bytes(config: ModelConfig, itemsize: int) -> tuple[int, int]:
    """Return what each token of a chunk takes, and each row of those in the feed-forward."""
    heads = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    # hidden state, its norm, the attention's result; qkv and three tensors of its rotation
    token = itemsize * (2 * config.d_model + config.n_heads * config.head_dim + 4 * heads)
    return token, itemsize * (3 * config.d_ff + config.d_model)


def _add_product(x: Tensor, factor: Tensor, weight: Tensor, bias: Optional[Tensor]) -> None:
    """Add ``factor`` @ ``weight``.T + ``bias`` to ``x``, in place."""
    x.addmm_(factor, weight.t())
    if bias is not None:
        x += bias
