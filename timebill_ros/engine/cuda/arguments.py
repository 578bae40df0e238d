# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The kernels' arguments, field by field as kernels/*.cuh declare them; tensors as pointers."""

import ctypes
from typing import Optional

from torch import Tensor

_POINTER, _FLOAT, _INT = ctypes.c_void_p, ctypes.c_float, ctypes.c_int


def pointer(tensor: Optional[Tensor]) -> Optional[int]:
    """Address of a contiguous tensor's first element; None for None."""
    if tensor is None:
        return None
    if not tensor.is_contiguous():
        raise ValueError(f'kernels take contiguous tensors, this one has strides {tensor.stride()}')
    return tensor.data_ptr()


class Phase(ctypes.Structure):
    """See kernels/program.cuh."""

    _fields_ = [
        ('weight', _POINTER), ('scales', _POINTER), ('bias', _POINTER), ('norm', _POINTER),
        ('x', _POINTER), ('out', _POINTER), ('tap', _POINTER), ('attends', _INT),
        ('epilogue', _INT), ('bits', _INT), ('n_rows', _INT), ('k', _INT), ('row_k', _INT),
        ('row_bytes', _INT), ('group', _INT), ('rows_per_block', _INT), ('continues', _INT)]


class StepArgs(ctypes.Structure):
    """See kernels/program.cuh."""

    _fields_ = [
        ('phases', _POINTER), ('barrier', _POINTER), ('table', _POINTER), ('tokens', _POINTER),
        ('hidden', _POINTER), ('slot_of_row', _POINTER), ('lengths', _POINTER),
        ('positions', _POINTER), ('cos', _POINTER), ('sin', _POINTER), ('partial', _POINTER),
        ('finished', _POINTER), ('logits', _POINTER), ('seen', _POINTER), ('penalty', _POINTER),
        ('best_value', _POINTER), ('best_index', _POINTER), ('slot_stride', ctypes.c_ulonglong),
        ('n_phases', _INT), ('width', _INT), ('vocabulary', _INT), ('capacity', _INT),
        ('heads', _INT), ('kv_heads', _INT), ('splits', _INT), ('least_tiles', _INT),
        ('norm_eps', _FLOAT), ('scale', _FLOAT), ('x_at', _INT), ('work_at', _INT),
        ('carry_at', _INT), ('phases_at', _INT), ('rows_at', _INT)]


class SampleArgs(ctypes.Structure):
    """See kernels/sampling.cuh."""

    _fields_ = [
        ('logits', _POINTER), ('best_value', _POINTER), ('best_index', _POINTER),
        ('slot_of_row', _POINTER), ('temperature', _POINTER), ('top_k', _POINTER),
        ('top_p', _POINTER), ('seed', _POINTER), ('lengths', _POINTER),
        ('positions', _POINTER), ('tokens', _POINTER), ('chosen', _POINTER), ('counters', _POINTER),
        ('vocabulary', _INT), ('n_best', _INT), ('n_counters', _INT)]
