# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The kernels of kernels/prompt.cuh and dequantize.cuh: tensors in, one launch each."""

import ctypes
from pathlib import Path
from typing import Optional, Protocol

import torch
from torch import Tensor

from timebill_ros.engine.cuda.quantize import Matrix

_POINTER, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
_STRIDE = ctypes.c_ulonglong
TURN_THREADS, GATE_THREADS, SELECT_THREADS, COMPACT_THREADS = 256, 256, 512, 512
DEQUANTIZE_THREADS = 256
_SELECT_SHARED_BYTES = (256 + SELECT_THREADS // 32 + 2) * 4
HEAD_DIMS = (16, 32, 64, 128, 256)


class Launcher(Protocol):
    """What runs a kernel: driver.Kernels on a GPU, an emulator in the tests."""

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, shared_bytes: int,
               arguments: ctypes.Structure) -> None:
        """Launch one kernel."""


class TurnArgs(ctypes.Structure):
    """See kernels/prompt.cuh."""

    _fields_ = [
        ('qkv', _POINTER), ('q_norm', _POINTER), ('k_norm', _POINTER), ('cos', _POINTER),
        ('sin', _POINTER), ('queries', _POINTER), ('keys', _POINTER), ('values', _POINTER),
        ('head_stride', _STRIDE), ('start', _INT), ('count', _INT), ('heads', _INT),
        ('kv_heads', _INT), ('norm_eps', _FLOAT)]


class GateArgs(ctypes.Structure):
    """See kernels/prompt.cuh."""

    _fields_ = [('gate_up', _POINTER), ('out', _POINTER), ('count', _INT), ('width', _INT)]


class SelectArgs(ctypes.Structure):
    """See kernels/prompt.cuh."""

    _fields_ = [('scores', _POINTER), ('kept_scores', _POINTER), ('best', _POINTER),
                ('n_scored', _INT), ('n_best', _INT)]


class CompactArgs(ctypes.Structure):
    """See kernels/prompt.cuh."""

    _fields_ = [
        ('keys', _POINTER), ('values', _POINTER), ('best', _POINTER), ('layer_stride', _STRIDE),
        ('head_stride', _STRIDE), ('kv_heads', _INT), ('n_best', _INT), ('tail', _INT),
        ('length', _INT), ('vectors', _INT)]


class DequantizeArgs(ctypes.Structure):
    """See kernels/dequantize.cuh."""

    _fields_ = [
        ('data', _POINTER), ('scales', _POINTER), ('out', _POINTER), ('rows', _INT), ('k', _INT),
        ('row_bytes', _INT), ('bits', _INT), ('group', _INT)]


class PromptKernels:
    """Launches them, for one width of a head."""

    def __init__(self, kernels: Launcher, head_dim: int) -> None:
        """Take what launches, with the kernels of ``source(head_dim)``."""
        self._kernels, self._head_dim = kernels, head_dim

    def turn(self, qkv: Tensor, queries: Tensor, keys: Tensor, values: Tensor, start: int,
             cos: Tensor, sin: Tensor, q_norm: Optional[Tensor], k_norm: Optional[Tensor],
             norm_eps: float) -> None:
        """
        Norm and rotate a chunk's queries and keys, and store keys and values.

        ``qkv`` [M, (heads + 2 kv_heads) * D] goes to ``queries`` [M or more, heads, D] and to the
        entries from ``start`` on of ``keys``, ``values`` [kv_heads, entries, D]; ``cos``, ``sin``
        float32 [positions, D]; the norms [D], or None.
        """
        heads, kv_heads = queries.shape[1], keys.shape[0]
        arguments = TurnArgs(
            qkv=qkv.data_ptr(), q_norm=_pointer(q_norm), k_norm=_pointer(k_norm),
            cos=cos.data_ptr(), sin=sin.data_ptr(), queries=queries.data_ptr(),
            keys=keys.data_ptr(), values=values.data_ptr(), head_stride=keys.stride(0),
            start=start, count=len(qkv), heads=heads, kv_heads=kv_heads, norm_eps=norm_eps)
        per_block = TURN_THREADS // (self._head_dim // 8)
        blocks = -(-len(qkv) * (heads + 2 * kv_heads) // per_block)
        self._kernels.launch('turn_heads', (blocks, 1, 1), TURN_THREADS, 0, arguments)

    def gate(self, gate_up: Tensor) -> Tensor:
        """Return silu(gate) * up [M, F] of ``gate_up`` [M, 2 F]."""
        rows, width = len(gate_up), gate_up.shape[1] // 2
        out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
        arguments = GateArgs(
            gate_up=gate_up.data_ptr(), out=out.data_ptr(), count=rows, width=width)
        self._kernels.launch('gate_rows', (-(-width // (8 * GATE_THREADS)), rows, 1),
                             GATE_THREADS, 0, arguments)
        return out

    def select(self, scores: Tensor, n_best: int) -> tuple[Tensor, Tensor]:
        """
        Return the ``n_best`` entries with the highest ``scores`` [L, H, n], ascending, int32.

        And their scores; both [L, H, n_best]. Among equals the lower entry wins.
        """
        scores = scores.contiguous()
        shape = (*scores.shape[:-1], n_best)
        best = torch.empty(shape, dtype=torch.int32, device=scores.device)
        kept_scores = torch.empty(shape, dtype=torch.float32, device=scores.device)
        arguments = SelectArgs(
            scores=scores.data_ptr(), kept_scores=kept_scores.data_ptr(), best=best.data_ptr(),
            n_scored=scores.shape[-1], n_best=n_best)
        rows = scores.shape[0] * scores.shape[1]
        self._kernels.launch(
            'select_best', (rows, 1, 1), SELECT_THREADS, _SELECT_SHARED_BYTES, arguments)
        return best, kept_scores

    def compact(self, keys: Tensor, values: Tensor, best: Tensor, tail: int, length: int) -> None:
        """
        Move the entries ``best`` [L, H, n_best] and those from ``tail`` to ``length`` to the front.

        ``keys``, ``values`` [L, H, entries, D] of one slot; in place.
        """
        arguments = CompactArgs(
            keys=keys.data_ptr(), values=values.data_ptr(), best=best.data_ptr(),
            layer_stride=keys.stride(0), head_stride=keys.stride(1), kv_heads=keys.shape[1],
            n_best=best.shape[2], tail=tail, length=length, vectors=self._head_dim // 8)
        self._kernels.launch('compact_entries', (keys.shape[1], keys.shape[0], 2),
                             COMPACT_THREADS, 0, arguments)

    def dequantize(self, matrix: Matrix, first_row: int, out: Tensor) -> None:
        """Write the rows from ``first_row`` on, a multiple of four, to ``out`` [rows, k], bf16."""
        assert matrix.scales is not None and first_row % 4 == 0
        per_row = {128: matrix.scales.stride(0) // 4, 32: matrix.scales.stride(0)}[matrix.group]
        scales = first_row * (4 if matrix.bits == 8 else 2 * per_row)
        arguments = DequantizeArgs(
            data=matrix.data.data_ptr() + first_row * matrix.row_bytes,
            scales=matrix.scales.data_ptr() + scales, out=out.data_ptr(), rows=len(out),
            k=matrix.k, row_bytes=matrix.row_bytes, bits=matrix.bits, group=matrix.group)
        blocks = -(-len(out) * (matrix.k // 8) // DEQUANTIZE_THREADS)
        self._kernels.launch('dequantize_rows', (blocks, 1, 1), DEQUANTIZE_THREADS, 0, arguments)


def source(head_dim: int, primitives: str = '') -> str:
    """Return the translation unit for a width of a head (``primitives``: of the emulator)."""
    directory = Path(__file__).parent / 'kernels'
    texts = [primitives or (directory / 'primitives.cuh').read_text(encoding='utf-8'),
             (directory / 'prompt.cuh').read_text(encoding='utf-8'),
             (directory / 'dequantize.cuh').read_text(encoding='utf-8'),
             f'ENTRY(turn_heads, {TURN_THREADS}, TurnArgs, (turn<{head_dim}>))',
             f'ENTRY(gate_rows, {GATE_THREADS}, GateArgs, gate)',
             f'ENTRY(select_best, {SELECT_THREADS}, SelectArgs, select)',
             f'ENTRY(compact_entries, {COMPACT_THREADS}, CompactArgs, compact)',
             f'ENTRY(dequantize_rows, {DEQUANTIZE_THREADS}, DequantizeArgs, dequantize)']
    return '\n'.join(texts) + '\n'


def _pointer(tensor: Optional[Tensor]) -> Optional[int]:
    return None if tensor is None else tensor.data_ptr()
