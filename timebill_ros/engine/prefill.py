# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The prefill behind one interface: chunk by chunk anywhere, in slices of a chunk on CUDA."""

from typing import NamedTuple, Protocol

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

    padded_lengths: list[int]       # to which short prompts are filled up, ascending
    attention_stair: int            # attention of longer ones is done for a multiple of so many

    def begin(self, seq: Sequence) -> None:
        """Put a first piece of work on its way where that needs no waiting; ``advance`` follows."""

    def advance(self, seq: Sequence, alone: bool = False) -> int:
        """
        Do a piece of work that may not be interrupted, and wait for it.

        Returns how many more tokens of the prompt are now in the cache; 0 while a chunk is still
        on its way through the layers. The last one leaves ``logits``, the tapped state and, on
        CUDA, the scores in the sequence. Where no other sequence is open (``alone``) the next piece
        may be on its way already.
        """

    def settle(self) -> None:
        """Wait for a piece that is on its way already."""


class PlainPrefill:
    """Whole chunks through the decoder's tensor code."""

    padded_lengths: list[int] = []
    attention_stair = 1

    def __init__(self, decoder: Decoder, chunk_tokens: int, device: torch.device) -> None:
        """Take the decoder and the tokens of a chunk."""
        self._decoder = decoder
        self._chunk_tokens = chunk_tokens
        self._device = device
        self.eviction: Eviction = PlainEviction()

    def begin(self, seq: Sequence) -> None:
        """Nothing can be on its way between two calls."""

    def advance(self, seq: Sequence, alone: bool = False) -> int:
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

    def settle(self) -> None:
        """Nothing can be on its way between two calls."""


class PrefillRoom(NamedTuple):
    """What of a prompt is computed at once."""

    chunk_tokens: int        # of a chunk
    graph_tokens: int = 0    # of the longest prompt that is run as CUDA graphs
    nbytes: int = 0          # that this takes on an accelerator beside weights and cache


def prefill_room(model: LoadedModel, load: Load, free_bytes: int) -> PrefillRoom:
    """Return it for a device where ``free_bytes`` are left for prefill and cache."""
    if model.device.type != 'cuda':
        return PrefillRoom(prefill_chunk(load.prefill_chunk, model.device))
    from timebill_ros.engine.cuda import setup
    return PrefillRoom(*setup.prefill_room(
        model.config, model.dtype.itemsize, free_bytes, load.prefill_chunk))


def make_prefill(model: LoadedModel, load: Load, room: PrefillRoom, rope: RopeTable,
                 cache: KVCache, decoder: Decoder) -> Prefill:
    """Return the prefill for the device."""
    if model.device.type != 'cuda':
        return PlainPrefill(decoder, room.chunk_tokens, model.device)
    from timebill_ros.engine.cuda import setup
    kernels, reason = setup.make_prompt_kernels(
        model.config, model.device, model.dtype, cache_dir(load.cache_dir) / 'kernels')
    if reason:
        model.notes.append(f'prefill and eviction with plain tensor code: {reason}')
    return setup.make_prefill(
        model.config, model.weights, rope, cache, room.chunk_tokens, room.graph_tokens,
        load.tap_layer, kernels)


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
