# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the compiled code is handed: the structures of ``kernels/``, declared once more."""

import ctypes
from typing import Optional

from torch import Tensor

from timebill_ros.engine.cpu.matrices import FLOAT32, MatrixC
from timebill_ros.engine.cpu.tiers import CpuTier, PRODUCTS
from timebill_ros.engine.errors import EngineError
from timebill_ros.engine.weights import LayerWeights, Weights

MAX_BATCH = 8                    # step.hpp
WINDOW = 32                      # prefill.hpp


class LayerC(ctypes.Structure):
    """Model.hpp, Layer."""

    _fields_ = [*((name, ctypes.c_void_p)
                  for name in ('input_norm', 'post_norm', 'q_norm', 'k_norm')),
                *((name, MatrixC) for name in PRODUCTS)]


class TierC(ctypes.Structure):
    """Model.hpp, Tier."""

    _fields_ = [('layers', ctypes.POINTER(LayerC)), ('final_norm', ctypes.c_void_p),
                ('head', MatrixC), ('activation_bits', ctypes.c_int32)]


class ModelC(ctypes.Structure):
    """Model.hpp, Model."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in (
            'n_layers', 'd_model', 'n_heads', 'n_kv_heads', 'head_dim', 'd_ff', 'vocab_size',
            'tap_layer')),
        ('norm_eps', ctypes.c_float), ('scale', ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ('embed', 'cos', 'signed_sin', 'keys', 'values')),
        ('n_slots', ctypes.c_int64), ('capacity', ctypes.c_int64), ('tap', ctypes.c_void_p)]


class BatchC(ctypes.Structure):
    """Step.hpp, Batch."""

    _fields_ = [*((name, ctypes.c_int32 * MAX_BATCH)
                  for name in ('slots', 'tokens', 'lengths', 'positions')),
                ('logits', ctypes.c_void_p), ('count', ctypes.c_int32)]


class ChunkC(ctypes.Structure):
    """Prefill.hpp, Chunk."""

    _fields_ = [*((name, ctypes.c_void_p) for name in ('ids', 'logits', 'tap', 'window')),
                ('first', ctypes.c_int64), ('position', ctypes.c_int64),
                ('count', ctypes.c_int32), ('slot', ctypes.c_int32)]


def tier_c(tier: CpuTier, weights: Weights, activation_bits: int) -> TierC:
    """
    Return a tier as the compiled code takes it; what it points to must be kept alive.

    ``activation_bits``: 32 = float32, 8, and in a prefill 16.
    """
    layers = (LayerC * len(tier.layers))()
    for to, matrices, layer in zip(layers, tier.layers, weights.layers):
        for name in ('input_norm', 'post_norm', 'q_norm', 'k_norm'):
            vector = getattr(layer, name)
            setattr(to, name, None if vector is None else vector.data_ptr())
        for name, bias in _biases(layer).items():
            setattr(to, name, matrices[name].for_c(bias))
    return TierC(layers, weights.final_norm.data_ptr(), tier.head.for_c(None),
                 activation_bits)


def is_packed(tier: CpuTier) -> bool:
    """Tell whether a tier has no matrix in torch's own float32."""
    return all(matrix.format != FLOAT32 for matrix in tier.matrices)


def check_sizes(library: ctypes.CDLL) -> None:
    """Raise EngineError if the compiled structures are not those declared here."""
    declared = [ctypes.sizeof(kind)
                for kind in (MatrixC, LayerC, TierC, ModelC, BatchC, ChunkC)]
    sizes = (ctypes.c_int64 * len(declared))()
    library.timebill_sizes(sizes)
    if list(sizes) != declared:
        raise EngineError(f'compiled structures have {list(sizes)} bytes, expected {declared}')


def _biases(layer: LayerWeights) -> dict[str, Optional[Tensor]]:
    gate: Optional[Tensor] = None
    up: Optional[Tensor] = None
    if layer.gate_up_bias is not None:
        gate, up = layer.gate_up_bias.chunk(2)          # views: the whole is kept alive
    return {'qkv': layer.qkv_bias, 'o': layer.o_bias, 'gate': gate, 'up': up,
            'down': layer.down_bias}
