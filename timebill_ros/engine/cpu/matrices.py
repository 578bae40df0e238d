# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Weight matrices in the layouts of ``kernels/matvec.hpp``."""

import ctypes
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from timebill_ros.engine.cpu.arena import Arena

FLOAT32, BFLOAT16, INT8, INT4 = range(4)        # matvec.hpp, Format
LANES, BLOCK = 16, 32                           # vector.hpp: rows together, columns with a scale
_BITS = {FLOAT32: 32.0, BFLOAT16: 16.0, INT8: 8.0 + 16 / BLOCK, INT4: 4.0 + 32 / BLOCK}


class MatrixC(ctypes.Structure):
    """Matvec.hpp, Matrix."""

    _fields_ = [('data', ctypes.c_void_p), ('scales', ctypes.c_void_p), ('bias', ctypes.c_void_p),
                ('rows', ctypes.c_int64), ('columns', ctypes.c_int64), ('format', ctypes.c_int32)]


@dataclass(frozen=True)
class Matrix:
    """A matrix [rows, columns]; the data of FLOAT32 is torch's own if that is row-major."""

    format: int
    rows: int
    columns: int
    data: Tensor
    scales: Optional[Tensor] = None

    @property
    def nbytes(self) -> int:
        """Memory of numbers and scales."""
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def for_c(self, bias: Optional[Tensor]) -> MatrixC:
        """Return the matrix as the compiled code takes it, with ``bias`` [rows] added."""
        return MatrixC(
            self.data.data_ptr(), None if self.scales is None else self.scales.data_ptr(),
            None if bias is None else bias.data_ptr(), self.rows, self.columns,
            self.format)


def matrix_bytes(rows: int, columns: int, code: int) -> int:
    """Return the memory of a packed matrix, known before it is made."""
    return int(-(-rows // LANES) * LANES * columns * _BITS[code]) // 8


class Packer:
    """Packs matrices with the functions of the compiled library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        """Declare what the functions return."""
        self._blocks = library.timebill_pack
        self._blocks.restype = ctypes.c_double           # sum of the squared errors
        self._bfloat16 = library.timebill_pack_bfloat16
        self._bfloat16.restype = ctypes.c_int64          # numbers changed
        self._arena = Arena()

    def pack(self, weight: Tensor, code: int) -> Matrix:
        """Return ``weight`` [rows, columns], float32, in a format; columns: a multiple of BLOCK."""
        return self._pack(weight.contiguous(), code, exact=False)[0]

    def pack_lossless(self, weight: Tensor) -> Matrix:
        """Return ``weight`` in the smallest format that holds every number of it as it is."""
        weight = weight.contiguous()
        for code in (INT4, INT8, BFLOAT16):
            used = self._arena.used
            matrix, error = self._pack(weight, code, exact=True)
            if error == 0.0:
                return matrix
            self._arena.give_back(used)
        return self._pack(weight, FLOAT32, exact=True)[0]

    def _pack(self, weight: Tensor, code: int, exact: bool) -> tuple[Matrix, float]:
        """Return the matrix and its error; with ``exact``, unfinished where there is an error."""
        rows, columns = weight.shape
        if code == FLOAT32:
            return Matrix(code, rows, columns, weight), 0.0
        groups, blocks = -(-rows // LANES), columns // BLOCK
        shape = (ctypes.c_int64(rows), ctypes.c_int64(columns))
        if code == BFLOAT16:
            data = self._arena.zeros((groups, columns, LANES), torch.int16)
            changed = self._bfloat16(_address(weight), *shape, int(exact), _address(data))
            return Matrix(code, rows, columns, data), float(changed)
        per_byte = 2 if code == INT4 else 1
        data = self._arena.zeros((groups, blocks, LANES * BLOCK // per_byte), torch.uint8)
        scales = self._arena.zeros((groups, blocks, per_byte * LANES), torch.int16)
        error = self._blocks(
            _address(weight), *shape, code, int(exact), _address(data), _address(scales))
        return Matrix(code, rows, columns, data, scales), float(error)


def _address(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
