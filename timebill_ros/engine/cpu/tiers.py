# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Precision tiers on a CPU: one model in several formats, each matrix held once however many use it.

fp32 computes with the checkpoint's own numbers in float32, from the smallest format that holds them
as they are: a file that was quantised to 4 bits is read at 4 bits, one in bfloat16 at 16. int8 and
int4 round the activations to 8 bits as well, in blocks of 32, and the weights only as far as
the checkpoint has not been rounded before.
"""

from dataclasses import dataclass
from typing import Optional

from torch import Tensor

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cpu.matrices import (
    BLOCK, INT4, INT8, LANES, Matrix, matrix_bytes, Packer)
from timebill_ros.engine.weights import LayerWeights, Weights

TIERS = ('fp32', 'int8', 'int4')
PRODUCTS = ('qkv', 'o', 'gate', 'up', 'down')
_FORMAT = {'int8': INT8, 'int4': INT4}
_HEAD_FORMAT = INT8      # the matrix whose errors reach the logits directly keeps 8 bits


@dataclass(frozen=True)
class CpuTier:
    """A whole model in one precision; norms and biases are the loaded ones."""

    name: str
    layers: list[dict[str, Matrix]]      # by product
    head: Matrix

    @property
    def matrices(self) -> list[Matrix]:
        """All matrices, the head last."""
        return [*(matrix for layer in self.layers for matrix in layer.values()), self.head]


def build_tiers(packer: Packer, weights: Weights, config: ModelConfig, names: list[str],
                free: bool = False) -> tuple[list[CpuTier], list[str]]:
    """
    Return the tiers ``names`` (fp32 first) and notes on those that are left out.

    With ``free``, the one that takes no memory comes as well, if there is one.
    """
    layers: dict[str, list[dict[str, Matrix]]] = {name: [] for name in names}
    for layer in weights.layers:
        made = {product: _formats(packer, weight, names, _FORMAT)
                for product, weight in _products(layer, config).items()}
        for name in names:
            layers[name].append({product: made[product][name] for product in PRODUCTS})
    head = _formats(packer, weights.head, names, {'int8': INT8, 'int4': _HEAD_FORMAT})
    tiers = [CpuTier(name, layers[name], head[name]) for name in names]
    extra = free_tier(tiers[0]) if free else None
    if extra is not None and extra.name not in names:
        tiers = sorted([*tiers, extra], key=lambda tier: TIERS.index(tier.name))
    return _without_twins(tiers)


def free_tier(base: CpuTier) -> Optional[CpuTier]:
    """
    Return the tier that has the matrices of fp32 itself and rounds the activations alone.

    A checkpoint that was quantised to 8 bits or 4 has one; for others there is none.
    """
    formats = {matrix.format for matrix in base.matrices}
    if not formats <= {INT8, INT4}:
        return None
    layers = {matrix.format for matrix in base.matrices[:-1]}
    return CpuTier('int4' if layers == {INT4} else 'int8', base.layers, base.head)


def _formats(packer: Packer, weight: Tensor, names: list[str],
             wanted: dict[str, int]) -> dict[str, Matrix]:
    """Return a matrix as each tier has it: rounded only where it has more bits than that."""
    lossless = packer.pack_lossless(weight)
    made = {lossless.format: lossless}
    out = {}
    for name in names:
        code = lossless.format
        if name in wanted and code < wanted[name]:       # a larger code has fewer bits
            code = wanted[name]
        if code not in made:
            made[code] = packer.pack(weight, code)
        out[name] = made[code]
    return out


def _without_twins(tiers: list[CpuTier]) -> tuple[list[CpuTier], list[str]]:
    """Leave out an int8 that is int4 to the last bit: the checkpoint has no more to give."""
    by_name = {tier.name: tier for tier in tiers}
    if {'int8', 'int4'} <= by_name.keys() and all(
            a is b for a, b in zip(by_name['int8'].matrices, by_name['int4'].matrices)):
        note = ('tier int8 is left out: the checkpoint is quantised to 4 bits already, and int4 '
                'holds its numbers as they are')
        return [tier for tier in tiers if tier.name != 'int8'], [note]
    return tiers, []


def _products(layer: LayerWeights, config: ModelConfig) -> dict[str, Tensor]:
    gate_up = layer.gate_up
    return {'qkv': layer.qkv, 'o': layer.o, 'gate': gate_up[:config.d_ff],
            'up': gate_up[config.d_ff:], 'down': layer.down}


def tier_bytes(config: ModelConfig, code: int, head_code: int) -> int:
    """Return the memory of a tier whose matrices are all packed, known before it is made."""
    d, width = config.d_model, config.n_heads * config.head_dim
    heads = width + 2 * config.n_kv_heads * config.head_dim
    per_layer = sum(matrix_bytes(rows, columns, code) for rows, columns in (
        (heads, d), (d, width), (2 * config.d_ff, d), (d, config.d_ff)))
    return config.n_layers * per_layer + matrix_bytes(config.vocab_size, d, head_code)


def unsupported(config: ModelConfig) -> str:
    """Return why the compiled steps cannot run a model, or '' if they can."""
    for what, size, unit in (
            ('head_dim', config.head_dim, LANES),
            ('d_model', config.d_model, BLOCK), ('d_ff', config.d_ff, BLOCK),
            ('attention width', config.n_heads * config.head_dim, BLOCK)):
        if size % unit:
            return f'{what} {size} is not a multiple of {unit}'
    if config.vocab_size < LANES:
        return f'a vocabulary of {config.vocab_size} is less than {LANES}'
    return ''
