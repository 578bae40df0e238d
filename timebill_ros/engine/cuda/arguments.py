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


class MatvecArgs(ctypes.Structure):
    """See kernels/matvec.cuh."""

    _fields_ = [
        ('weight', _POINTER), ('scales', _POINTER), ('bias', _POINTER), ('x', _POINTER),
        ('norm_weight', _POINTER), ('out', _POINTER), ('tap', _POINTER), ('logits', _POINTER),
        ('seen', _POINTER), ('penalty', _POINTER), ('slot_of_row', _POINTER),
        ('best_value', _POINTER), ('best_index', _POINTER),
        ('norm_eps', _FLOAT), ('n_rows', _INT), ('k', _INT), ('rows_per_block', _INT)]


class AttentionArgs(ctypes.Structure):
    """See kernels/attention.cuh."""

    _fields_ = [
        ('qkv', _POINTER), ('q_norm', _POINTER), ('k_norm', _POINTER), ('cos', _POINTER),
        ('sin', _POINTER), ('slot_of_row', _POINTER), ('lengths', _POINTER),
        ('positions', _POINTER), ('keys', _POINTER), ('values', _POINTER), ('out', _POINTER),
        ('partial', _POINTER), ('finished', _POINTER), ('slot_stride', ctypes.c_ulonglong),
        ('capacity', _INT), ('heads', _INT), ('kv_heads', _INT),
        ('norm_eps', _FLOAT), ('scale', _FLOAT),
        ('least_tiles', _INT)]


class EmbedArgs(ctypes.Structure):
    """See kernels/sampling.cuh."""

    _fields_ = [
        ('table', _POINTER), ('tokens', _POINTER), ('slot_of_row', _POINTER), ('out', _POINTER),
        ('width', _INT)]


class SampleArgs(ctypes.Structure):
    """See kernels/sampling.cuh."""

    _fields_ = [
        ('logits', _POINTER), ('best_value', _POINTER), ('best_index', _POINTER),
        ('slot_of_row', _POINTER), ('temperature', _POINTER), ('top_k', _POINTER),
        ('top_p', _POINTER), ('seed', _POINTER), ('seen', _POINTER), ('lengths', _POINTER),
        ('positions', _POINTER), ('tokens', _POINTER), ('chosen', _POINTER),
        ('vocabulary', _INT), ('n_best', _INT)]
