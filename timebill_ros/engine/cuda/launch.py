# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""One function per kernel: tensors in, grid and arguments worked out, one launch."""

import ctypes
from typing import Optional, Protocol

from torch import Tensor

from timebill_ros.engine.cuda.arguments import pointer, SampleArgs, StepArgs
from timebill_ros.engine.cuda.layout import Layout
from timebill_ros.engine.cuda.program import n_phases
from timebill_ros.engine.cuda.state import BatchState
from timebill_ros.engine.cuda.variants import SAMPLE_SHARED_BYTES, SAMPLE_THREADS, Step


class Launcher(Protocol):
    """What runs a kernel: driver.Kernels on a GPU, an emulator in the tests."""

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, shared_bytes: int,
               arguments: ctypes.Structure, cooperative: bool = False) -> None:
        """Launch one kernel; ``cooperative``: all of its blocks run at the same time."""


def splits_of(blocks: int, kv_heads: int, batch: int) -> int:
    """Return into how many stretches attention may divide a cache."""
    return max(1, blocks // (kv_heads * batch))


def step(kernels: Launcher, kernel: Step, layout: Layout, blocks: int, phases: Tensor,
         state: BatchState, cos: Tensor, sin: Tensor, cache: Tensor, heads: int, norm_eps: float,
         scale: float, table: Optional[Tensor] = None, hidden: Optional[Tensor] = None,
         least_tiles: int = 1) -> None:
    """
    Launch the phases, after the tokens' look-up in ``table`` [vocabulary, d] if there is one.

    ``cos``, ``sin`` float32 [positions, D]; ``cache`` one layer's keys [slots, kv_heads, capacity,
    D], for its shape; ``scale`` of the attention scores.
    """
    _, kv_heads, capacity, width = cache.shape
    if width != kernel.head_dim:
        raise ValueError(f'the kernel is for heads of width {kernel.head_dim}, not {width}')
    arguments = StepArgs(
        phases=pointer(phases), n_phases=n_phases(phases), barrier=pointer(state.counters),
        table=pointer(table), tokens=pointer(state.tokens), hidden=pointer(hidden),
        width=0 if table is None else table.shape[1], vocabulary=state.seen.shape[1],
        slot_of_row=pointer(state.slot_of_row),
        lengths=pointer(state.lengths), positions=pointer(state.positions), cos=pointer(cos),
        sin=pointer(sin), partial=pointer(state.partial), finished=pointer(state.counters[1:]),
        logits=pointer(state.logits), seen=pointer(state.seen), penalty=pointer(state.penalty),
        best_value=pointer(state.best_value), best_index=pointer(state.best_index),
        slot_stride=cache.stride(0), capacity=capacity, heads=heads, kv_heads=kv_heads,
        splits=splits_of(blocks, kv_heads, kernel.batch), least_tiles=least_tiles,
        norm_eps=norm_eps, scale=scale,
        x_at=layout.x_at, work_at=layout.work_at, carry_at=layout.carry_at,
        phases_at=layout.phases_at, rows_at=layout.rows_at)
    kernels.launch(kernel.name, (blocks, 1, 1), kernel.threads, layout.total_bytes, arguments,
                   cooperative=True)


def sample(kernels: Launcher, batch: int, n_best: int, state: BatchState) -> None:
    """Launch the choice of each row's next token; counts it in lengths and positions."""
    arguments = SampleArgs(
        logits=pointer(state.logits), best_value=pointer(state.best_value),
        best_index=pointer(state.best_index), slot_of_row=pointer(state.slot_of_row),
        temperature=pointer(state.temperature), top_k=pointer(state.top_k),
        top_p=pointer(state.top_p), seed=pointer(state.seed),
        lengths=pointer(state.lengths), positions=pointer(state.positions),
        tokens=pointer(state.tokens), chosen=pointer(state.chosen),
        counters=pointer(state.counters), vocabulary=state.logits.shape[1], n_best=n_best,
        n_counters=state.counters.numel())
    kernels.launch('sample_token', (batch, 1, 1), SAMPLE_THREADS, SAMPLE_SHARED_BYTES, arguments)
