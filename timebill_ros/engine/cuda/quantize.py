# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Weight-only int8 and int4: from bf16 matrices to what kernels/formats.cuh reads, and back."""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from timebill_ros.engine.cuda.variants import GROUP

# Scales tried per int4 group, as fractions of the one that just covers the largest magnitude; the
# one with the least squared error is kept.
_SHRINK = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)


@dataclass(frozen=True)
class Matrix:
    """A matrix [n, k] in one of the formats; ``data`` is bf16, int8 or words of eight int4."""

    bits: int
    data: Tensor                       # [n, k] bf16 | [n, k] int8 | [n, k / 8] int32
    scales: Optional[Tensor] = None    # int8: float32 [n]; int4: bf16 [ceil(n / 4), groups, 4]

    @property
    def n(self) -> int:
        """Rows."""
        return self.data.shape[0]

    @property
    def k(self) -> int:
        """Columns."""
        return self.data.shape[1] * (8 if self.bits == 4 else 1)

    @property
    def nbytes(self) -> int:
        """Memory of data and scales."""
        tensors = [self.data] if self.scales is None else [self.data, self.scales]
        return sum(t.numel() * t.element_size() for t in tensors)


def matrix_bytes(n: int, k: int, bits: int) -> int:
    """Memory of an [n, k] matrix in a format, known before it is made."""
    scales = {16: 0, 8: 4 * n, 4: 8 * -(-n // 4) * -(-k // GROUP)}[bits]
    return n * k * bits // 8 + scales


def quantize(weight: Tensor, bits: int) -> Matrix:
    """Bring a bf16 matrix [n, k] into the format of ``bits`` (16: as it is)."""
    if weight.shape[1] % (128 // bits):
        raise ValueError(f'{bits}-bit kernels need a multiple of {128 // bits} columns, '
                         f'not {weight.shape[1]}')
    if bits == 16:
        return Matrix(16, weight.contiguous())
    return _to_int8(weight) if bits == 8 else _to_int4(weight)


def _to_int8(weight: Tensor) -> Matrix:
    """Quantise with one scale per row: w = q * scale, q in [-127, 127]."""
    scale = weight.abs().amax(dim=1).float().clamp_min(1e-12) / 127
    data = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for rows in torch.arange(weight.shape[0], device=weight.device).split(8192):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        q = (weight[part].float() / scale[part, None]).round_().clamp_(-127, 127)
        data[part] = q.to(torch.int8)
    return Matrix(8, data, scale.contiguous())


def _to_int4(weight: Tensor) -> Matrix:
    """Quantise with one scale per row and 128 columns: w = q * scale, q in [-8, 7]."""
    n, k = weight.shape
    groups = -(-k // GROUP)
    data = torch.empty((n, k // 8), dtype=torch.int32, device=weight.device)
    scales = torch.ones((-(-n // 4) * 4, groups), dtype=torch.bfloat16, device=weight.device)
    for start in range(0, n, 4096):
        part = weight[start:start + 4096].float()
        part = torch.nn.functional.pad(part, (0, groups * GROUP - k)).view(-1, groups, GROUP)
        q, scale = _best_int4(part)
        scales[start:start + scale.shape[0]] = scale
        data[start:start + 4096] = _pack(q.view(-1, groups * GROUP)[:, :k])
    scales = scales.view(-1, 4, groups).transpose(1, 2).contiguous()
    return Matrix(4, data, scales)


def _best_int4(groups: Tensor) -> 'tuple[Tensor, Tensor]':
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
    q = torch.empty((n, k // 8, 2, 4), dtype=torch.float32, device=matrix.data.device)
    for i in range(4):
        for half in range(2):
            nibble = (matrix.data >> (8 * i + 4 * half)) & 15
            q[:, :, half, i] = (nibble ^ 8) - 8
    scales = matrix.scales.transpose(1, 2).reshape(-1, matrix.scales.shape[1])[:n]
    scales = scales.repeat_interleave(GROUP, dim=1)[:, :k].float()
    return (q.view(n, k) * scales).to(torch.bfloat16)
