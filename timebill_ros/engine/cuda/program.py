# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Builds the list of phases that a step kernel goes through (kernels/program.cuh)."""

import ctypes
from typing import Optional, Sequence

import torch
from torch import Tensor

from timebill_ros.engine.cuda.arguments import Phase, pointer
from timebill_ros.engine.cuda.layout import part_columns
from timebill_ros.engine.cuda.quantize import Matrix
from timebill_ros.engine.cuda.tuning import rows_per_block
from timebill_ros.engine.cuda.variants import FINE_GROUP, GROUP

EPILOGUES = {'store': 0, 'add_residual': 1, 'swiglu': 2, 'logits': 3}
_KEEP = 4


def product_phases(weight: Matrix, epilogue: str, blocks: int, x: Tensor, out: Optional[Tensor],
                   bias: Optional[Tensor] = None, norm: Optional[Tensor] = None,
                   tap: Optional[Tensor] = None, parts: int = 1) -> list[Phase]:
    """
    Return the phases of out = W x: one, or ``parts`` that take some of the columns each.

    ``x`` [batch, k], which passes an RMS norm if there is a ``norm`` [k]; store: out = W x + bias;
    add_residual: out += W x + bias; swiglu: out = silu(G x) * (U x), W = G over U; logits: scores
    of the vocabulary into the step's logits, and the best of each block.
    """
    rows = weight.n // 2 if epilogue == 'swiglu' else weight.n
    columns = part_columns(weight.k, weight.bits, parts)
    phases = []
    for start in range(0, weight.k, columns):
        scales = pointer(weight.scales)
        if scales is not None and weight.bits == 4:
            scales += start // GROUP * (16 if weight.group == FINE_GROUP else 8)
        last = start + columns >= weight.k
        phases.append(Phase(
            weight=weight.data.data_ptr() + start * weight.bits // 8, scales=scales,
            bias=pointer(bias), norm=pointer(norm), x=x.data_ptr() + 2 * start, out=pointer(out),
            tap=pointer(tap) if last else None, bits=weight.bits, n_rows=rows,
            epilogue=EPILOGUES[epilogue] if last else _KEEP, k=min(columns, weight.k - start),
            row_k=weight.k, row_bytes=weight.row_bytes, group=weight.group,
            rows_per_block=rows_per_block(rows, blocks), continues=start > 0))
    return phases


def attention_phase(keys: Tensor, values: Tensor, qkv: Tensor, out: Tensor,
                    q_norm: Optional[Tensor] = None, k_norm: Optional[Tensor] = None) -> Phase:
    """
    Return the phase of attention of one new token per row, appended to the cache.

    ``keys``, ``values`` one layer of the cache [slots, kv_heads, capacity, D]; ``qkv`` [batch,
    (heads + 2 kv_heads) * D]; ``out`` [batch, heads * D]; norms [D] or None.
    """
    return Phase(weight=pointer(keys), scales=pointer(values), x=pointer(qkv), out=pointer(out),
                 norm=pointer(q_norm), bias=pointer(k_norm), attends=1)


def phase_table(phases: Sequence[Phase], device: torch.device) -> Tensor:
    """Return the phases in device memory; the tensor must live as long as launches use it."""
    array = (Phase * len(phases))(*phases)
    return torch.frombuffer(bytearray(bytes(array)), dtype=torch.uint8).to(device)


def n_phases(table: Tensor) -> int:
    """Return how many phases a table holds."""
    return table.numel() // ctypes.sizeof(Phase)
