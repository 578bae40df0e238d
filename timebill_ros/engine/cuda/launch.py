# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""One function per kernel: tensors in, grid and arguments worked out, one launch."""

import ctypes
from typing import Optional, Protocol, Tuple

from torch import Tensor

from timebill_ros.engine.cuda.arguments import (
    AttentionArgs, EmbedArgs, MatvecArgs, pointer, SampleArgs)
from timebill_ros.engine.cuda.quantize import Matrix
from timebill_ros.engine.cuda.state import BatchState
from timebill_ros.engine.cuda.tuning import rows_per_block
from timebill_ros.engine.cuda.variants import (
    Attention, EMBED_THREADS, Matvec, MAX_GROUP, SAMPLE_SHARED_BYTES, SAMPLE_THREADS)


class Launcher(Protocol):
    """What runs a kernel: driver.Kernels on a GPU, an emulator in the tests."""

    def launch(self, name: str, grid: Tuple[int, int, int], threads: int, shared_bytes: int,
               arguments: ctypes.Structure) -> None:
        """Launch one kernel."""


def matvec(kernels: Launcher, kernel: Matvec, blocks: int, weight: Matrix, x: Tensor, out: Tensor,
           bias: Optional[Tensor] = None, norm: Optional[Tensor] = None, norm_eps: float = 0.0,
           tap: Optional[Tensor] = None) -> None:
    """
    Launch a product: ``x`` [batch, k] to ``out`` [batch, rows], as the kernel's role says.

    role qkv: out = W norm(x) + bias; residual: out += W x + bias; gate_up: out = silu(G norm(x)) *
    (U norm(x)), W = G over U.
    """
    rows = weight.n // 2 if kernel.role == 'gate_up' else weight.n
    per_block = rows_per_block(rows, blocks)
    arguments = MatvecArgs(
        weight=pointer(weight.data), scales=pointer(weight.scales), bias=pointer(bias),
        x=pointer(x), norm_weight=pointer(norm), out=pointer(out), tap=pointer(tap),
        norm_eps=norm_eps, n_rows=rows, k=weight.k, rows_per_block=per_block)
    kernels.launch(kernel.name, (blocks, 1, 1), kernel.threads,
                   kernel.shared_bytes(weight.k, per_block), arguments)


def head(kernels: Launcher, kernel: Matvec, blocks: int, weight: Matrix, x: Tensor, norm: Tensor,
         norm_eps: float, state: BatchState) -> None:
    """Launch the head: final norm, logits with the repetition penalty, best token per block."""
    per_block = rows_per_block(weight.n, blocks)
    arguments = MatvecArgs(
        weight=pointer(weight.data), scales=pointer(weight.scales), x=pointer(x),
        norm_weight=pointer(norm), logits=pointer(state.logits), seen=pointer(state.seen),
        penalty=pointer(state.penalty), slot_of_row=pointer(state.slot_of_row),
        best_value=pointer(state.best_value), best_index=pointer(state.best_index),
        norm_eps=norm_eps, n_rows=weight.n, k=weight.k, rows_per_block=per_block)
    kernels.launch(kernel.name, (blocks, 1, 1), kernel.threads,
                   kernel.shared_bytes(weight.k, per_block), arguments)


def attention(kernels: Launcher, kernel: Attention, splits: int, batch: int, qkv: Tensor,
              out: Tensor, keys: Tensor, values: Tensor, cos: Tensor, sin: Tensor, scale: float,
              state: BatchState, q_norm: Optional[Tensor] = None,
              k_norm: Optional[Tensor] = None, norm_eps: float = 0.0, least_tiles: int = 1) -> None:
    """
    Launch attention of one new token per row; appends its key and value to the cache.

    ``qkv`` [batch, (heads + 2 kv_heads) * D]; ``keys``, ``values`` one layer of the cache [slots,
    kv_heads, capacity, D]; ``cos``, ``sin`` float32 [positions, D].
    """
    _, kv_heads, capacity, width = keys.shape
    heads = out.shape[1] // width
    if heads // kv_heads > MAX_GROUP or width != kernel.head_dim:
        raise ValueError(f'no attention kernel for {heads} heads on {kv_heads} of width {width}')
    arguments = AttentionArgs(
        qkv=pointer(qkv), q_norm=pointer(q_norm), k_norm=pointer(k_norm), cos=pointer(cos),
        sin=pointer(sin), slot_of_row=pointer(state.slot_of_row), lengths=pointer(state.lengths),
        positions=pointer(state.positions), keys=pointer(keys), values=pointer(values),
        out=pointer(out), partial=pointer(state.partial), finished=pointer(state.finished),
        slot_stride=keys.stride(0), capacity=capacity, heads=heads, kv_heads=kv_heads,
        norm_eps=norm_eps, scale=scale,
        least_tiles=least_tiles)
    kernels.launch(kernel.name, (splits, kv_heads, batch), kernel.threads, kernel.shared_bytes(),
                   arguments)


def embed(kernels: Launcher, batch: int, table: Tensor, out: Tensor, state: BatchState) -> None:
    """Launch the look-up of each row's current token in ``table`` [vocabulary, d]."""
    arguments = EmbedArgs(
        table=pointer(table), tokens=pointer(state.tokens), slot_of_row=pointer(state.slot_of_row),
        out=pointer(out), width=table.shape[1])
    kernels.launch('embed_token', (batch, 1, 1), EMBED_THREADS, 0, arguments)


def sample(kernels: Launcher, batch: int, n_best: int, state: BatchState) -> None:
    """Launch the choice of each row's next token; counts it in lengths, positions and seen."""
    arguments = SampleArgs(
        logits=pointer(state.logits), best_value=pointer(state.best_value),
        best_index=pointer(state.best_index), slot_of_row=pointer(state.slot_of_row),
        temperature=pointer(state.temperature), top_k=pointer(state.top_k),
        top_p=pointer(state.top_p), seed=pointer(state.seed), seen=pointer(state.seen),
        lengths=pointer(state.lengths), positions=pointer(state.positions),
        tokens=pointer(state.tokens), chosen=pointer(state.chosen),
        vocabulary=state.logits.shape[1], n_best=n_best)
    kernels.launch('sample_token', (batch, 1, 1), SAMPLE_THREADS, SAMPLE_SHARED_BYTES, arguments)
