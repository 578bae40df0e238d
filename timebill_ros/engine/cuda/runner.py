# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Decode steps of the sequences in the cache's slots, which the device keeps account of."""

import bisect
from collections import deque
import secrets
from typing import Deque, Mapping, Protocol, Sequence, Union

import torch

from timebill_ros.engine.cuda.decode_step import DecodeStep, WIDTHS
from timebill_ros.engine.cuda.variants import MAX_BATCH
from timebill_ros.engine.kv_cache import KVCache
from timebill_ros.query import Sampling


class Launches(Protocol):
    """What starts a step and waits for it: ``StepGraphs`` on a GPU."""

    @property
    def tiers(self) -> list[str]:
        """Names of the tiers that are loaded."""

    def launch(self, tier: str, width: int, rows: tuple[int, ...]) -> None:
        """Start a step of ``rows`` [MAX_BATCH], slots, -1: nobody; those before had the same."""

    def sleep(self) -> None:
        """Sleep while the oldest step that is under way has long to go."""

    def wait(self) -> None:
        """Wait until that one is over."""


class StepRunner:
    """
    Runs decode steps for up to eight sequences at a time.

    All tiers use one cache, so every step may name another tier. Lengths, positions, sampling
    parameters and tokens live on the device; a step costs one launch, its kernel writes the chosen
    tokens to the host's memory. So a step may be started before anybody asks for it, and before the
    one before is over: what the host counts follows only with ``collect``.
    """

    def __init__(self, step: DecodeStep, launches: Launches, cache: KVCache) -> None:
        """Take the parts."""
        self._step, self._launches, self._cache = step, launches, cache
        self._under_way: Deque[tuple[int, ...]] = deque()   # slots by row, of each step

    @property
    def tiers(self) -> list[str]:
        """Names of the tiers that are loaded."""
        return self._launches.tiers

    @property
    def tap(self) -> torch.Tensor:
        """Hidden states after the tapped layer, [8, d_model]: the rows of the newest step."""
        return self._step.tap

    @property
    def logits(self) -> torch.Tensor:
        """Scores of the vocabulary, [8, vocab_size] float32: the rows of the newest step."""
        return self._step.state.logits

    @torch.inference_mode()
    def start(self, slot: int, token: Union[int, torch.Tensor], sampling: Sampling,
              seen: Union[torch.Tensor, Sequence[int]]) -> None:
        """
        Begin decoding in a slot whose prompt is in the cache (and evicted from).

        ``token`` is the first token of the response, maybe still on its way on the device; ``seen``
        holds the prompt's ids, which the repetition penalty applies to as well as to every token
        that a step takes in. If they are pinned nothing here waits for the device.
        """
        state = self._step.state
        self.move(slot)
        state.tokens[slot] = token
        state.temperature[slot] = 0.0 if sampling.greedy else sampling.temperature
        state.top_k[slot] = sampling.top_k
        state.top_p[slot], state.penalty[slot] = sampling.top_p, sampling.repetition_penalty
        state.seed[slot] = secrets.randbits(62) if sampling.seed is None else sampling.seed
        ids = torch.as_tensor(seen, dtype=torch.long).to(state.seen.device, non_blocking=True)
        state.seen[slot].zero_().index_fill_(0, ids, 1)

    @torch.inference_mode()
    def move(self, slot: int) -> None:
        """Tell the device a slot's length and position after the host changed them (eviction)."""
        self._step.state.lengths[slot] = self._cache.length[slot]
        self._step.state.positions[slot] = self._cache.position[slot]

    def step(self, tier: str, slots: Sequence[int]) -> list[int]:
        """Run one step for the sequences in ``slots``; returns their next tokens in that order."""
        self.enqueue(tier, slots)
        self.sleep()
        return self.collect()

    @torch.inference_mode()
    def enqueue(self, tier: str, slots: Sequence[int]) -> None:
        """Start a step without waiting for it; beside one under way, another of the same slots."""
        width = WIDTHS[bisect.bisect_left(WIDTHS, len(slots))]
        self._launches.launch(tier, width, (*slots, *(-1,) * (MAX_BATCH - len(slots))))
        self._under_way.append(tuple(slots))

    def sleep(self) -> None:
        """Sleep while the oldest step that is under way has long to go."""
        self._launches.sleep()

    def collect(self) -> list[int]:
        """Wait for the oldest step that is under way and return its tokens."""
        slots = self._under_way.popleft()
        self._launches.wait()
        chosen = self._step.state.chosen[:len(slots)].tolist()
        tokens = [row[self._cache.position[slot] % 2] for row, slot in zip(chosen, slots)]
        for slot in slots:
            self._cache.advance(slot, 1)
        return tokens

    @torch.inference_mode()
    def take_back(self, tokens: Mapping[int, int]) -> None:
        """
        Wait for the step that nobody has collected, and undo it.

        ``tokens`` has by slot the token that it took in; other slots need not be as they were. What
        it wrote to the cache lies behind what is counted, and the next step draws the same again.
        """
        while self._under_way:
            self._under_way.popleft()
            self._launches.wait()
        for slot, token in tokens.items():
            self.move(slot)
            self._step.state.tokens[slot] = token
