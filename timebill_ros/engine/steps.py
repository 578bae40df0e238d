# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Decode steps behind one interface: compiled on CPU and CUDA, plain tensor code anywhere."""

from pathlib import Path
from typing import Callable, Optional, Protocol, TYPE_CHECKING, Union

import torch
from torch import Tensor

from timebill_ros.engine.decoder import Decoder
from timebill_ros.engine.errors import EngineError, ModelError, NotFinite
from timebill_ros.engine.kv_cache import KVCache
from timebill_ros.engine.loading import LoadedModel
from timebill_ros.engine.memory import usable_bytes
from timebill_ros.engine.rope import RopeTable
from timebill_ros.engine.sequence import Sequence
from timebill_ros.engine.threads import step_threads
from timebill_ros.executor.messages import AUTO_TIERS, Load
from timebill_ros.paths import cache_dir

if TYPE_CHECKING:
    from timebill_ros.engine.cpu.setup import CpuTiers
    from timebill_ros.engine.cuda.runner import StepRunner
    from timebill_ros.engine.cuda.tiers import Tier

Tiers = Union['CpuTiers', list['Tier']]      # of a CPU, of a CUDA device

_TIER_OF = {torch.float32: 'fp32', torch.bfloat16: 'bf16', torch.float16: 'fp16'}


class Steps(Protocol):
    """Takes decode steps in one of several precisions."""

    @property
    def tiers(self) -> list[str]:
        """Return the precisions, best quality first."""

    @property
    def packed_bytes(self) -> dict[str, int]:
        """Return by tier what its matrices take, where they are packed tighter than it says."""

    @property
    def tap(self) -> Optional[Tensor]:
        """Return the tapped layer's output, one row for each sequence of the newest step."""

    @property
    def logits(self) -> Tensor:
        """Return the logits of the newest step, [rows, vocab_size]; valid until the next one."""

    def step(self, seqs: list[Sequence], tier: str,
             goes_on: Callable[[bool], bool]) -> list[int]:
        """
        Run the newest token of each sequence and return the next ones; '' = the first tier.

        If it ``goes_on(False)`` the next step like it may begin already before this one is over.
        """

    def begin(self, seq: Sequence, token: Optional[Tensor] = None) -> None:
        """
        Take note that the first token of a response was chosen; part of the prefill's time.

        It is the newest of ``seq``, or a ``token`` that is still on its way on the device.
        """

    def moved(self, slot: int) -> None:
        """Take note that a slot's entries have changed: some were evicted."""

    @property
    def ahead(self) -> bool:
        """Tell whether a step is under way that nobody has asked for yet."""

    def is_ahead(self, seqs: list[Sequence], tier: str) -> bool:
        """Tell whether that is this step."""

    def go_ahead(self, seqs: list[Sequence], tier: str) -> None:
        """Start a step like the newest one, for when it is asked for; where that is possible."""

    def settle(self) -> None:
        """Undo a step that went ahead, as if it had never begun."""


class StepsOnDemand:
    """What steps have in common that only begin when they are asked for."""

    ahead = False

    def is_ahead(self, seqs: list[Sequence], tier: str) -> bool:
        """Return False: there is none."""
        return False

    def go_ahead(self, seqs: list[Sequence], tier: str) -> None:
        """Start nothing."""

    def settle(self) -> None:
        """Nothing to do: there is no step that went ahead."""


class PlainSteps(StepsOnDemand):
    """Steps through the decoder's tensor code, in the precision that the weights are in."""

    packed_bytes: dict[str, int] = {}

    def __init__(self, decoder: Decoder, dtype: torch.dtype, device: torch.device) -> None:
        """Take the decoder that prefills as well."""
        self.tiers = [_TIER_OF[dtype]]
        self._decoder = decoder
        self._device = device
        self.logits = torch.empty(0)

    @property
    def tap(self) -> Optional[Tensor]:
        """Return the tap, as ``Steps`` says."""
        return self._decoder.tap

    def begin(self, seq: Sequence, token: Optional[Tensor] = None) -> None:
        """Nothing to do: the first token is read from the sequence."""

    def moved(self, slot: int) -> None:
        """Nothing to do: lengths are read from the cache at every step."""

    def step(self, seqs: list[Sequence], tier: str,
             goes_on: Callable[[bool], bool]) -> list[int]:
        """Run a step, as ``Steps`` says."""
        ids = torch.tensor([seq.tokens[-1] for seq in seqs], device=self._device)
        self.logits = self._decoder.step([seq.slot for seq in seqs], ids)
        return [seq.sampler.choose(row) for seq, row in zip(seqs, self.logits)]


class GraphSteps:
    """Steps as replays of CUDA graphs, the choice of the token included."""

    packed_bytes: dict[str, int] = {}

    def __init__(self, runner: 'StepRunner') -> None:
        """Take the runner of the graphs."""
        self.tiers = runner.tiers
        self._runner = runner
        self._ahead: Optional[tuple[list[Sequence], str]] = None

    @property
    def tap(self) -> Optional[Tensor]:
        """Return the tap, as ``Steps`` says."""
        return self._runner.tap

    @property
    def logits(self) -> Tensor:
        """Return the logits, as ``Steps`` says."""
        return self._runner.logits

    def begin(self, seq: Sequence, token: Optional[Tensor] = None) -> None:
        """Tell the device where the response starts, and what it has seen: its whole prompt."""
        self._runner.start(seq.slot, seq.tokens[0] if token is None else token,
                           seq.sampler.sampling, seq.ids)
        seq.begun = True

    def moved(self, slot: int) -> None:
        """Tell the device how long the slot is now."""
        self._runner.move(slot)

    def step(self, seqs: list[Sequence], tier: str,
             goes_on: Callable[[bool], bool]) -> list[int]:
        """Run a step, as ``Steps`` says."""
        if not self.is_ahead(seqs, tier):
            self.settle()
            for seq in seqs:
                if not seq.begun:
                    self.begin(seq)
            self._runner.enqueue(tier or self.tiers[0], [seq.slot for seq in seqs])
        self._ahead = None
        self._runner.sleep()
        if goes_on(False):
            self.go_ahead(seqs, tier)
        chosen = self._runner.collect()
        if min(chosen) < 0:
            raise NotFinite
        return chosen

    @property
    def ahead(self) -> bool:
        """Tell whether a step went ahead, as ``Steps`` says."""
        return self._ahead is not None

    def is_ahead(self, seqs: list[Sequence], tier: str) -> bool:
        """Tell whether this step did; a slot may have another sequence by now."""
        return self._ahead is not None and self._ahead[1] == tier and (
            [*map(id, self._ahead[0])] == [*map(id, seqs)])

    def go_ahead(self, seqs: list[Sequence], tier: str) -> None:
        """Start a step; the device has all that it takes."""
        self._runner.enqueue(tier or self.tiers[0], [seq.slot for seq in seqs])
        self._ahead = list(seqs), tier

    def settle(self) -> None:
        """Wait for a step that went ahead and undo it, for the sequences that are still open."""
        if self._ahead is not None:
            seqs, _ = self._ahead
            self._ahead = None
            self._runner.take_back({
                seq.slot: seq.tokens[-1] for seq in seqs if not seq.closed})


def make_tiers(model: LoadedModel, load: Load) -> tuple['Tiers', list[str]]:
    """Make the tiers asked for that fit, for ``make_steps``; and notes on the rest."""
    if model.device.type == 'cpu':
        from timebill_ros.engine.cpu import setup as cpu
        made = cpu.make_tiers(load.tiers, model.config, model.weights, _compiled(load))
        return made, made.notes
    if model.tiers is not None:
        return model.tiers, []
    from timebill_ros.engine.cuda import setup as cuda
    free = usable_bytes(model.device, load.gpu_memory_fraction) - cuda.reserved_bytes(
        model.config, model.dtype, model.max_context)
    wanted = [name for name in load.tiers if name != AUTO_TIERS]     # there every tier takes memory
    choice = cuda.choose_tiers(wanted, model.config, model.device, model.dtype, free)
    return cuda.make_tiers(choice.names, model.config, model.weights), choice.notes


def make_steps(model: LoadedModel, load: Load, tiers: 'Tiers', rope: RopeTable,
               cache: KVCache, decoder: Decoder) -> Steps:
    """Return compiled steps for the tiers, or plain ones where there are none."""
    if not isinstance(tiers, list):
        from timebill_ros.engine.cpu import setup as cpu
        if tiers.tiers:
            return cpu.make_steps(tiers, model.config, model.weights, rope, cache, load.tap_layer,
                                  step_threads(load.threads))
    elif tiers:
        from timebill_ros.engine.cuda import setup as cuda
        try:
            runner = cuda.make_runner(
                model.config, model.weights, tiers, rope, cache, _compiled(load),
                load.tap_layer - 1 if load.tap_layer else None)
            return GraphSteps(runner)
        except EngineError as error:
            if model.tiers is not None:
                raise ModelError(f'without bf16 weights there is no other way: {error}') from error
            model.notes.append(f'decoding with plain tensor code, in one precision: {error}')
    return PlainSteps(decoder, model.dtype, model.device)


def _compiled(load: Load) -> Path:
    """Return where compiled code is kept."""
    return cache_dir(load.cache_dir) / 'kernels'
