# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Weight-only int8 and int4: from bf16 matrices to what kernels/formats.cuh reads, and back."""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from timebill_ros.engine.cuda.variants import FINE_GROUP, GROUP

# Ranges tried per int4 group, as fractions of the one that just covers all of it; the one with the
# least squared error is kept.
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)
_AT_ONCE = 2 ** 23           # entries quantised at a time: what is made on the way is float32


@dataclass(frozen=True)
class Matrix:
    """A matrix [n, k] in one of the formats; ``data`` is bf16, int8 or words of eight int4."""

    bits: int
    k: int                             # columns
    data: Tensor                       # [n, k] bf16 | [n, k] int8 | [n, k / 8] int32
    # int8: float32 [n]. int4: bf16 [ceil(n / 4), groups, 4]; with groups of 32 columns bf16
    # [n, groups, 2], scale and offset, and data and groups padded to 128 columns.
    scales: Optional[Tensor] = None
    group: int = GROUP                 # columns of int4 that share a scale

    @property
    def n(self) -> int:
        """Rows."""
        return self.data.shape[0]

    @property
    def row_bytes(self) -> int:
        """Bytes from one row of ``data`` to the next."""
        return self.data.shape[1] * self.data.element_size()

    @property
    def nbytes(self) -> int:
        """Memory of data and scales."""
        tensors = [self.data] if self.scales is None else [self.data, self.scales]
        return sum(t.numel() * t.element_size() for t in tensors)


def matrix_bytes(n: int, k: int, bits: int, group: int = GROUP) -> int:
    """Memory of an [n, k] matrix in a format, known before it is made."""
    if bits == 4 and group == FINE_GROUP:
        padded = -(-k // GROUP) * GROUP
        return n * padded // 2 + n * padded // FINE_GROUP * 4
    scales = {16: 0, 8: 4 * n, 4: 8 * -(-n // 4) * -(-k // GROUP)}[bits]
    return n * k * bits // 8 + scales


def quantize(weight: Tensor, bits: int, group: int = GROUP) -> Matrix:
    """Bring a bf16 matrix [n, k] into the format of ``bits`` (16: as it is)."""
    if weight.shape[1] % (128 // bits):
        raise ValueError(f'{bits}-bit kernels need a multiple of {128 // bits} columns, '
                         f'not {weight.shape[1]}')
    if bits == 16:
        return Matrix(16, weight.shape[1], weight.contiguous())
    if bits == 8:
        return _to_int8(weight)
    return _to_fine_int4(weight) if group == FINE_GROUP else _to_int4(weight)


def _to_int8(weight: Tensor) -> Matrix:
    """Quantise with one scale per row: w = q * scale, q in [-127, 127]."""
    scale = weight.abs().amax(dim=1).float().clamp_min(1e-12) / 127
    data = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    rows = _rows_at_once(weight.shape[1])
    for start in range(0, weight.shape[0], rows):
        part = slice(start, start + rows)
        q = (weight[part].float() / scale[part, None]).round_().clamp_(-127, 127)
        data[part] = q.to(torch.int8)
    return Matrix(8, weight.shape[1], data, scale.contiguous())


def _to_int4(weight: Tensor) -> Matrix:
    """Quantise with one scale per row and 128 columns: w = q * scale, q in [-8, 7]."""
    n, k = weight.shape
    groups = -(-k // GROUP)
    data = torch.empty((n, k // 8), dtype=torch.int32, device=weight.device)
    scales = torch.ones((-(-n // 4) * 4, groups), dtype=torch.bfloat16, device=weight.device)
    rows = _rows_at_once(k)
    for start in range(0, n, rows):
        part = weight[start:start + rows].float()
        part = torch.nn.functional.pad(part, (0, groups * GROUP - k)).view(-1, groups, GROUP)
        q, scale = _best_int4(part)
        scales[start:start + scale.shape[0]] = scale
        data[start:start + rows] = _pack(q.view(-1, groups * GROUP)[:, :k])
    scales = scales.view(-1, 4, groups).transpose(1, 2).contiguous()
    return Matrix(4, k, data, scales)


def _to_fine_int4(weight: Tensor) -> Matrix:
    """
    Quantise with scale and offset per row and 32 columns: w = q * scale + offset, q in [-8, 7].

    A checkpoint that had four bits in such groups before (GGUF's Q4_0, Q4_1) is met again but for
    the rounding of scale and offset to bf16.
    """
    n, k = weight.shape
    blocks = -(-k // GROUP)
    groups = blocks * GROUP // FINE_GROUP
    data = torch.empty((n, blocks * GROUP // 8), dtype=torch.int32, device=weight.device)
    scales = torch.empty((n, groups, 2), dtype=torch.bfloat16, device=weight.device)
    rows = _rows_at_once(k)
    for start in range(0, n, rows):
        part = weight[start:start + rows].float()
        part = torch.nn.functional.pad(part, (0, blocks * GROUP - k))
        q, scales[start:start + rows] = _best_fine_int4(part.view(-1, groups, FINE_GROUP))
        # Word 4 j + t of 128 columns goes to place 4 t + j: see kernels/formats.cuh.
        words = _pack(q.view(-1, blocks * GROUP)).view(-1, blocks, 4, 4)
        data[start:start + rows] = words.transpose(2, 3).reshape(-1, blocks * GROUP // 8)
    return Matrix(4, k, data, scales, FINE_GROUP)


def _best_fine_int4(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers [n, groups, 32] and bf16 (scale, offset) [n, groups, 2], least error."""
    low, high = groups.amin(dim=2, keepdim=True), groups.amax(dim=2, keepdim=True)
    mean = groups.mean(dim=2, keepdim=True)
    best_error = torch.full_like(mean, torch.inf)
    best = torch.zeros((*groups.shape[:2], 2), device=groups.device)
    for shrink in _SHRINK:
        scale = _nonzero((high - low) * (shrink / 15))
        offset = (high + low) / 2 + scale / 2           # of the middle of -8 ... 7
        q = ((groups - offset) / scale).round_().clamp_(-8, 7)
        # The straight line that fits best through these integers, as bf16 can hold it.
        centred = q - q.mean(dim=2, keepdim=True)
        spread = centred.square().sum(dim=2, keepdim=True)
        fitted = (centred * groups).sum(dim=2, keepdim=True) / spread.clamp_min(1e-9)
        scale = _nonzero(torch.where(spread > 0, fitted, scale).to(torch.bfloat16).float())
        offset = (mean - scale * q.mean(dim=2, keepdim=True)).to(torch.bfloat16).float()
        q = ((groups - offset) / scale).round_().clamp_(-8, 7)
        error = (q * scale + offset - groups).square().sum(dim=2, keepdim=True)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better, torch.cat([scale, offset], 2), best)
    q = ((groups - best[..., 1:]) / best[..., :1]).round_().clamp_(-8, 7)
    return q.to(torch.int32), best.to(torch.bfloat16)


def _best_int4(groups: Tensor) -> tuple[Tensor, Tensor]:
    """Return the integers [n, groups, GROUP] and bf16 scales with the least squared error."""
    low, high = groups.amin(dim=2), groups.amax(dim=2)
    # The scale's sign lets the extreme of either side use the one integer more that -8 is.
    extreme = torch.where(high > -low, high, low)
    best_error = torch.full_like(extreme, torch.inf)
    best_scale = torch.ones_like(extreme)
    for shrink in _SHRINK:
        scale = _nonzero((extreme * shrink / -8).to(torch.bfloat16).float())
        q = (groups / scale[..., None]).round_().clamp_(-8, 7)
        error = (q * scale[..., None] - groups).square().sum(dim=2)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale = torch.where(better, scale, best_scale)
    q = (groups / best_scale[..., None]).round_().clamp_(-8, 7)
    return q.to(torch.int32), best_scale.to(torch.bfloat16)


def _rows_at_once(k: int) -> int:
    """Return how many rows of ``k`` columns are quantised at once: a multiple of four."""
    return max(1, _AT_ONCE // (4 * k)) * 4


def _nonzero(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, torch.ones_like(scale), scale)


def _pack(q: Tensor) -> Tensor:
    """Pack eight columns into a word, in two's complement: byte i holds columns i and i + 4."""
    halves = (q & 15).view(q.shape[0], -1, 2, 4)
    word = torch.zeros(halves.shape[:2], dtype=torch.int32, device=q.device)
    for i in range(4):
        word |= (halves[:, :, 0, i] << (8 * i)) | (halves[:, :, 1, i] << (8 * i + 4))
    return word


def dequantize(matrix: Matrix) -> Tensor:
    """Return the bf16 matrix that a quantised one stands for (a prefill without bf16 weights)."""
    if matrix.bits == 16:
        return matrix.data
    assert matrix.scales is not None
    if matrix.bits == 8:
        return (matrix.data.float() * matrix.scales[:, None]).to(torch.bfloat16)
    n, k = matrix.n, matrix.k
    fine = matrix.group == FINE_GROUP
    data = matrix.data
    if fine:
        data = data.view(n, -1, 4, 4).transpose(2, 3).reshape(n, -1)
    q = torch.empty((n, data.shape[1], 2, 4), dtype=torch.float32, device=data.device)
    for i in range(4):
        for half in range(2):
            nibble = (data >> (8 * i + 4 * half)) & 15
            q[:, :, half, i] = (nibble ^ 8) - 8
    if fine:
        scale, offset = matrix.scales.float().unsqueeze(3).unbind(2)
        return (q.view(n, -1, FINE_GROUP) * scale + offset).view(n, -1)[:, :k].to(torch.bfloat16)
    scales = matrix.scales.transpose(1, 2).reshape(-1, matrix.scales.shape[1])[:n]
    scales = scales.repeat_interleave(GROUP, dim=1)[:, :k].float()
    return (q.view(n, k) * scales).to(torch.bfloat16)
