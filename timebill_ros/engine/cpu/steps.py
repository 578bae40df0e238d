# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Decode steps and prefill chunks, each one call into compiled code, over the KV cache."""

import ctypes
from typing import Callable, Optional

import torch
from torch import Tensor

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cpu.structures import (
    BatchC, check_sizes, ChunkC, is_packed, MAX_BATCH, ModelC, tier_c, TierC)
from timebill_ros.engine.cpu.tiers import CpuTier, free_tier
from timebill_ros.engine.errors import EngineError
from timebill_ros.engine.kv_cache import KVCache
from timebill_ros.engine.rope import RopeTable, sign_sin
from timebill_ros.engine.sequence import Sequence
from timebill_ros.engine.steps import StepsOnDemand
from timebill_ros.engine.weights import Weights

INT16 = 'int16'      # prefill alone: the matrices of fp32, activations rounded to 16 bits


class CompiledSteps(StepsOnDemand):
    """
    Steps of 1 to 8 sequences of any lengths (``engine.steps.Steps``).

    A sequence's numbers are the same, to the last bit, whoever else is in the step.
    """

    def __init__(self, library: ctypes.CDLL, config: ModelConfig, weights: Weights,
                 tiers: list[CpuTier], rope: RopeTable, cache: KVCache, tap_layer: int,
                 threads: int) -> None:
        """Hand the addresses over; everything named here is kept alive with the steps."""
        check_sizes(library)
        self.tiers = [tier.name for tier in tiers]
        self.packed_bytes = {
            tier.name: sum(matrix.nbytes for matrix in tier.matrices) for tier in tiers}
        self._cache = cache
        self._logits = torch.empty((MAX_BATCH, config.vocab_size))
        self._tap = torch.zeros((MAX_BATCH, config.d_model)) if tap_layer else None
        self._count = 0
        tables = (rope.cos.contiguous(), sign_sin(rope.sin).contiguous())
        self._kept = (weights, tiers, tables)
        self._tier: dict[str, TierC] = {
            tier.name: tier_c(tier, weights, 32 if tier.name == 'fp32' else 8) for tier in tiers}
        self._prefill_tier = {
            tier.name: self._tier[tier.name] for tier in tiers if is_packed(tier)}
        if free_tier(tiers[0]) is not None:     # only whole numbers are multiplied with such
            self._prefill_tier[INT16] = tier_c(tiers[0], weights, 16)
        self._batch = BatchC(logits=self._logits.data_ptr())
        self._model = ModelC(
            config.n_layers, config.d_model, config.n_heads, config.n_kv_heads, config.head_dim,
            config.d_ff, config.vocab_size, tap_layer, config.norm_eps,
            float(config.head_dim ** -0.5), weights.embed.data_ptr(), tables[0].data_ptr(),
            tables[1].data_ptr(), cache.k.data_ptr(), cache.v.data_ptr(), cache.n_slots,
            cache.capacity, None if self._tap is None else self._tap.data_ptr())
        self._run = library.timebill_step
        self._run.argtypes = [ctypes.c_void_p, ctypes.POINTER(TierC), ctypes.POINTER(BatchC)]
        library.timebill_create.restype = ctypes.c_void_p
        self._run_chunk = library.timebill_prefill
        self._run_chunk.argtypes = [
            ctypes.c_void_p, ctypes.POINTER(TierC), ctypes.POINTER(ChunkC)]
        self.can_prefill = list(self._prefill_tier)
        self._destroy = library.timebill_destroy
        self._destroy.argtypes = [ctypes.c_void_p]
        self._handle = library.timebill_create(ctypes.byref(self._model), threads)

    def __del__(self) -> None:
        """End the threads."""
        if getattr(self, '_handle', None):
            self._destroy(self._handle)

    def prefill(self, slot: int, ids: list[int], window: Optional[Tensor], last: bool,
                tier: str = 'fp32') -> tuple[Optional[Tensor], Optional[Tensor]]:
        """
        Run the next ``ids`` of a slot's prompt in a tier that ``can_prefill``.

        ``window`` [n_layers, n_heads, WINDOW, head_dim] gets the queries of the last tokens, at its
        end. Returns the logits [vocab_size] and the tapped state [d_model] of the last token, if
        it is the prompt's ``last`` and, for the second, if there is a tap.
        """
        cache, model = self._cache, self._model
        self._check_ids(ids)
        logits = torch.empty(model.vocab_size) if last else None
        tap = torch.empty(model.d_model) if last and model.tap_layer else None
        numbers = (ctypes.c_int32 * len(ids))(*ids)
        addresses = [None if each is None else each.data_ptr() for each in (logits, tap, window)]
        chunk = ChunkC(ctypes.addressof(numbers), *addresses, cache.length[slot],
                       cache.position[slot], len(ids), slot)
        self._run_chunk(self._handle, ctypes.byref(self._prefill_tier[tier]),
                        ctypes.byref(chunk))
        cache.advance(slot, len(ids))
        return logits, tap

    @property
    def tap(self) -> Optional[Tensor]:
        """Return the tapped layer's output, one row for each sequence of the newest step."""
        return None if self._tap is None else self._tap[:self._count].clone()

    @property
    def logits(self) -> Tensor:
        """Return the logits of the newest step, [rows, vocab_size]; valid until the next one."""
        return self._logits[:self._count]

    def begin(self, seq: Sequence, token: Optional[Tensor] = None) -> None:
        """Nothing to do: the first token is read from the sequence."""

    def moved(self, slot: int) -> None:
        """Nothing to do: lengths are read from the cache at every step."""

    def step(self, seqs: list[Sequence], tier: str,
             goes_on: Callable[[bool], bool]) -> list[int]:
        """Run the newest token of each sequence and return the next ones; '' = the first tier."""
        logits = self.run([seq.slot for seq in seqs], [seq.tokens[-1] for seq in seqs], tier)
        return [seq.sampler.choose(row) for seq, row in zip(seqs, logits)]

    def run(self, slots: list[int], tokens: list[int], tier: str) -> Tensor:
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
        self._check_ids(tokens)
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

    def _check_ids(self, ids: list[int]) -> None:
        """Raise EngineError for a token that the embedding has no row for."""
        if min(ids) < 0 or max(ids) >= self._model.vocab_size:
            raise EngineError(f'a token id is not in the vocabulary of {self._model.vocab_size}')
