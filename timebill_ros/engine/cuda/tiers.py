# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Precision tiers: the same model with its matrices in bf16, int8 or int4; norms stay bf16."""

from dataclasses import dataclass
from typing import Optional

from torch import Tensor

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cuda.quantize import Matrix, matrix_bytes, quantize
from timebill_ros.engine.cuda.variants import FINE_GROUP, GROUP, HEAD_DIMS, MAX_GROUP
from timebill_ros.engine.weights import LayerWeights, Weights

BITS: dict[str, int] = {'bf16': 16, 'int8': 8, 'int4': 4}
# The head is the matrix whose errors reach the logits directly, so int4 keeps it at eight bits.
HEAD_BITS: dict[str, int] = {'bf16': 16, 'int8': 8, 'int4': 8}
# Small models lose much by coarse groups, and their steps take as long whatever their bytes.
_FINE_UP_TO_PARAMETERS = 1_000_000_000


@dataclass(frozen=True)
class TierLayer:
    """One layer: matrices in the tier's format, everything else as loaded."""

    small: LayerWeights          # its norms and biases are used
    qkv: Matrix
    o: Matrix
    gate_up: Matrix
    down: Matrix


@dataclass(frozen=True)
class Tier:
    """A whole model in one precision."""

    name: str
    layers: list[TierLayer]
    final_norm: Tensor
    head: Matrix

    @property
    def nbytes(self) -> int:
        """Memory that the matrices take, those of bf16 shared with the prefill."""
        return self.head.nbytes + sum(
            matrix.nbytes for layer in self.layers
            for matrix in (layer.qkv, layer.o, layer.gate_up, layer.down))


def build_tier(name: str, weights: Weights, group: int) -> Tier:
    """
    Quantise the matrices of a loaded model layer by layer; bf16 takes no further memory.

    ``group`` as ``int4_group`` says.
    """
    return Tier(name, [build_layer(name, layer, group) for layer in weights.layers],
                weights.final_norm, quantize(weights.head, HEAD_BITS[name], group))


def build_layer(name: str, layer: LayerWeights, group: int) -> TierLayer:
    """Quantise the matrices of one layer."""
    return TierLayer(layer, *(quantize(matrix, BITS[name], group) for matrix in (
        layer.qkv, layer.o, layer.gate_up, layer.down)))


def int4_group(config: ModelConfig) -> int:
    """Return the columns of int4 that share a scale."""
    return FINE_GROUP if config.n_parameters <= _FINE_UP_TO_PARAMETERS else GROUP


def tier_bytes(name: str, config: ModelConfig) -> int:
    """Memory that a tier's matrices will take, known before loading."""
    heads = config.n_heads + 2 * config.n_kv_heads
    d, width = config.d_model, config.head_dim
    shapes = ((heads * width, d), (d, config.n_heads * width), (2 * config.d_ff, d),
              (d, config.d_ff))
    per_layer = sum(matrix_bytes(n, k, BITS[name], int4_group(config)) for n, k in shapes)
    return config.n_layers * per_layer + matrix_bytes(config.vocab_size, d, HEAD_BITS[name])


def unsupported(config: ModelConfig, name: str) -> Optional[str]:
    """Return why the kernels cannot run a model in a tier, or None if they can."""
    if config.head_dim not in HEAD_DIMS:
        return f'head_dim {config.head_dim} (kernels have {HEAD_DIMS})'
    if config.group > MAX_GROUP:
        return f'{config.group} query heads per KV head (kernels have up to {MAX_GROUP})'
    step = 128 // BITS[name]
    for what, k in (('d_model', config.d_model), ('d_ff', config.d_ff),
                    ('attention width', config.n_heads * config.head_dim)):
        if k % step:
            return f'{what} {k} is not a multiple of {step}'
    if config.d_ff % 4:
        return f'd_ff {config.d_ff} is not a multiple of 4'
    return None
