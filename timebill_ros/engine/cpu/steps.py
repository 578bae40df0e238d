# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Decode steps in one call into compiled code, for all tiers, over the engine's KV cache."""

import ctypes
from typing import Dict, List, Optional

import torch
from torch import Tensor

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cpu.matrices import MatrixC
from timebill_ros.engine.cpu.tiers import CpuTier, PRODUCTS
from timebill_ros.engine.errors import EngineError
from timebill_ros.engine.kv_cache import KVCache
from timebill_ros.engine.rope import RopeTable, sign_sin
from timebill_ros.engine.sequence import Sequence
from timebill_ros.engine.weights import LayerWeights, Weights

MAX_BATCH = 8                    # step.cpp


class _LayerC(ctypes.Structure):
    """Step.cpp, Layer."""

    _fields_ = [*((name, ctypes.c_void_p)
                  for name in ('input_norm', 'post_norm', 'q_norm', 'k_norm')),
                *((name, MatrixC) for name in PRODUCTS)]


class _TierC(ctypes.Structure):
    """Step.cpp, Tier."""

    _fields_ = [('layers', ctypes.POINTER(_LayerC)), ('final_norm', ctypes.c_void_p),
                ('head', MatrixC), ('int8_activations', ctypes.c_int32)]


class _ModelC(ctypes.Structure):
    """Step.cpp, Model."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in (
            'n_layers', 'd_model', 'n_heads', 'n_kv_heads', 'head_dim', 'd_ff', 'vocab_size',
            'tap_layer')),
        ('norm_eps', ctypes.c_float), ('scale', ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ('embed', 'cos', 'signed_sin', 'keys', 'values')),
        ('n_slots', ctypes.c_int64), ('capacity', ctypes.c_int64), ('tap', ctypes.c_void_p)]


class _BatchC(ctypes.Structure):
    """Step.cpp, Batch."""

    _fields_ = [*((name, ctypes.c_int32 * MAX_BATCH)
                  for name in ('slots', 'tokens', 'lengths', 'positions')),
                ('logits', ctypes.c_void_p), ('count', ctypes.c_int32)]


class CompiledSteps:
    """
    Steps of 1 to 8 sequences of any lengths (``engine.steps.Steps``).

    A sequence's numbers are the same, to the last bit, whoever else is in the step.
    """

    def __init__(self, library: ctypes.CDLL, config: ModelConfig, weights: Weights,
                 tiers: List[CpuTier], rope: RopeTable, cache: KVCache, tap_layer: int,
                 threads: int) -> None:
        """Hand the addresses over; everything named here is kept alive with the steps."""
        _check_sizes(library)
        self.tiers = [tier.name for tier in tiers]
        self._cache = cache
        self._logits = torch.empty((MAX_BATCH, config.vocab_size))
        self._tap = torch.zeros((MAX_BATCH, config.d_model)) if tap_layer else None
        self._count = 0
        tables = (rope.cos.contiguous(), sign_sin(rope.sin).contiguous())
        self._kept = (weights, tiers, tables)
        self._tier: Dict[str, _TierC] = {tier.name: _tier_c(tier, weights) for tier in tiers}
        self._batch = _BatchC(logits=self._logits.data_ptr())
        self._model = _ModelC(
            config.n_layers, config.d_model, config.n_heads, config.n_kv_heads, config.head_dim,
            config.d_ff, config.vocab_size, tap_layer, config.norm_eps,
            float(config.head_dim ** -0.5), weights.embed.data_ptr(), tables[0].data_ptr(),
            tables[1].data_ptr(), cache.k.data_ptr(), cache.v.data_ptr(), cache.n_slots,
            cache.capacity, None if self._tap is None else self._tap.data_ptr())
        self._run = library.timebill_step
        self._run.argtypes = [ctypes.c_void_p, ctypes.POINTER(_TierC), ctypes.POINTER(_BatchC)]
        library.timebill_create.restype = ctypes.c_void_p
        self._destroy = library.timebill_destroy
        self._destroy.argtypes = [ctypes.c_void_p]
        self._handle = library.timebill_create(ctypes.byref(self._model), threads)

    def __del__(self) -> None:
        """End the threads."""
        if getattr(self, '_handle', None):
            self._destroy(self._handle)

    @property
    def tap(self) -> Optional[Tensor]:
        """Return the tapped layer's output, one row for each sequence of the newest step."""
        return None if self._tap is None else self._tap[:self._count].clone()

    @property
    def logits(self) -> Tensor:
        """Return the logits of the newest step, [rows, vocab_size]; valid until the next one."""
        return self._logits[:self._count]

    def moved(self, slot: int) -> None:
        """Nothing to do: lengths are read from the cache at every step."""

    def step(self, seqs: List[Sequence], tier: str) -> List[int]:
        """Run the newest token of each sequence and return the next ones; '' = the first tier."""
        logits = self.run([seq.slot for seq in seqs], [seq.tokens[-1] for seq in seqs], tier)
        return [seq.sampler.choose(row) for seq, row in zip(seqs, logits)]

    def run(self, slots: List[int], tokens: List[int], tier: str) -> Tensor:
        """
        Run one token of each slot; returns the logits [B, vocab_size], valid until the next call.

        Raises EngineError for a tier that is not there or too many slots.
        """
        chosen = self._tier.get(tier or self.tiers[0])
        if chosen is None:
            raise EngineError(f'tier {tier!r} is not one of {", ".join(self.tiers)}')
        count = len(slots)
        if not 1 <= count <= MAX_BATCH:
            raise EngineError(f'a step is of 1 to {MAX_BATCH} sequences, not {count}')
        batch, cache = self._batch, self._cache
        batch.count = self._count = count
        for row, slot in enumerate(slots):
            batch.slots[row] = slot
            batch.tokens[row] = tokens[row]
            batch.lengths[row] = cache.length[slot]
            batch.positions[row] = cache.position[slot]
        self._run(self._handle, ctypes.byref(chosen), ctypes.byref(batch))
        for slot in slots:
            cache.advance(slot, 1)
        return self._logits[:count]


def _tier_c(tier: CpuTier, weights: Weights) -> _TierC:
    layers = (_LayerC * len(tier.layers))()
    for to, matrices, layer in zip(layers, tier.layers, weights.layers):
        for name in ('input_norm', 'post_norm', 'q_norm', 'k_norm'):
            vector = getattr(layer, name)
            setattr(to, name, None if vector is None else vector.data_ptr())
        for name, bias in _biases(layer).items():
            setattr(to, name, matrices[name].for_c(bias))
    return _TierC(layers, weights.final_norm.data_ptr(), tier.head.for_c(None),
                  int(tier.name != 'fp32'))


def _biases(layer: LayerWeights) -> Dict[str, Optional[Tensor]]:
    gate: Optional[Tensor] = None
    up: Optional[Tensor] = None
    if layer.gate_up_bias is not None:
        gate, up = layer.gate_up_bias.chunk(2)          # views: the whole is kept alive
    return {'qkv': layer.qkv_bias, 'o': layer.o_bias, 'gate': gate, 'up': up,
            'down': layer.down_bias}


def _check_sizes(library: ctypes.CDLL) -> None:
    sizes = (ctypes.c_int64 * 5)()
    library.timebill_sizes(sizes)
    declared = [ctypes.sizeof(kind) for kind in (MatrixC, _LayerC, _TierC, _ModelC, _BatchC)]
    if list(sizes) != declared:
        raise EngineError(f'compiled structures have {list(sizes)} bytes, expected {declared}')
