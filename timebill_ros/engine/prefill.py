# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The prefill behind one interface: chunk by chunk anywhere, in slices of a chunk on CUDA."""

from typing import List, Protocol, Tuple

import torch

from timebill_ros.budget.kept import SNAPKV_WINDOW
from timebill_ros.engine.decoder import Decoder
from timebill_ros.engine.eviction import Eviction, PlainEviction
from timebill_ros.engine.kv_cache import KVCache
from timebill_ros.engine.loading import LoadedModel, prefill_chunk
from timebill_ros.engine.rope import RopeTable
from timebill_ros.engine.sequence import Sequence
from timebill_ros.engine.steps import Steps
from timebill_ros.executor.messages import Load
from timebill_ros.paths import cache_dir


class Prefill(Protocol):
    """Brings prompts into the cache, and evicts from them."""

    eviction: Eviction

    padded_lengths: List[int]       # to which short prompts are filled up, ascending

    def advance(self, seq: Sequence) -> int:
        """
        Do a piece of work that may not be interrupted, and wait for it.

        Returns how many more tokens of the prompt are now in the cache; 0 while a chunk is still
        on its way through the layers. The last one leaves ``logits`` and the tapped state in the
        sequence.
        """


class PlainPrefill:
    """Whole chunks through the decoder's tensor code."""

    padded_lengths: List[int] = []

    def __init__(self, decoder: Decoder, chunk_tokens: int, device: torch.device) -> None:
        """Take the decoder and the tokens of a chunk."""
        self._decoder = decoder
        self._chunk_tokens = chunk_tokens
        self._device = device
        self.eviction: Eviction = PlainEviction()

    def advance(self, seq: Sequence) -> int:
        """Run the next chunk, as ``Prefill`` says."""
        ids = seq.prompt[seq.n_prefilled:seq.n_prefilled + self._chunk_tokens]
        left = seq.n_prompt - seq.n_prefilled
        window = seq.window if left <= self._chunk_tokens + SNAPKV_WINDOW else None
        last = len(ids) == left
        seq.logits = self._decoder.prefill_chunk(
            seq.slot, torch.tensor(ids, device=self._device), window, last)
        if last and self._decoder.tap is not None:
            seq.prompt_state = self._decoder.tap[-1].float()
        return len(ids)


def prefill_room(model: LoadedModel, load: Load, free_bytes: int) -> Tuple[int, int]:
    """Return the tokens of a prefill chunk and the memory that it takes on an accelerator."""
    if model.device.type != 'cuda':
        return prefill_chunk(load.prefill_chunk, model.device), 0
    from timebill_ros.engine.cuda.chunk_layers import choose_chunk
    chunk, nbytes = choose_chunk(model.config, model.dtype.itemsize, free_bytes)
    return min(chunk, load.prefill_chunk or chunk), nbytes


def make_prefill(model: LoadedModel, load: Load, chunk_tokens: int, rope: RopeTable,
                 cache: KVCache, decoder: Decoder) -> Prefill:
    """Return the prefill for the device."""
    if model.device.type != 'cuda':
        return PlainPrefill(decoder, chunk_tokens, model.device)
    from timebill_ros.engine.cuda import setup
    kernels, reason = setup.make_prompt_kernels(
        model.config, model.device, model.dtype, cache_dir(load.cache_dir) / 'kernels')
    if reason:
        model.notes.append(f'prefill and eviction with plain tensor code: {reason}')
    return setup.make_prefill(
        model.config, model.weights, rope, cache, chunk_tokens, load.tap_layer, kernels)


def beside_steps(prefill: Prefill, steps: Steps, model: LoadedModel, chunk_tokens: int,
                 tier: str) -> Prefill:
    """
    Return the prefill of the code that the steps were compiled from, if it can; else ``prefill``.

    ``tier`` is what the user wants prompts to be read in; '' = full precision.
    """
    if model.device.type == 'cpu':
        from timebill_ros.engine.cpu.prefill import CompiledPrefill
        from timebill_ros.engine.cpu.steps import CompiledSteps
        if isinstance(steps, CompiledSteps) and steps.can_prefill:
            if tier and tier not in steps.can_prefill:
                model.notes.append(f'prefill_tier {tier} is none of '
                                   f'{", ".join(steps.can_prefill)}')
                tier = ''
            if (tier or 'fp32') in steps.can_prefill:
                return CompiledPrefill(steps, model.config, chunk_tokens, tier or 'fp32')
    if tier:
        model.notes.append(f'prefill_tier {tier} is for compiled steps on a CPU')
    return prefill


def device_suffix(prefill: Prefill) -> str:
    """Return what a device's name gets to tell times of an inexact prefill from others."""
    tier = getattr(prefill, 'tier', 'fp32')
    return '' if tier == 'fp32' else f', prefill in {tier}'
