# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The decode step as one CUDA graph per tier and batch width."""

import bisect
import secrets
import time
from typing import Dict, Iterable, List, Sequence, Tuple

import torch

from timebill_ros.engine.cuda.decode_step import DecodeStep, WIDTHS
from timebill_ros.engine.cuda.tiers import Tier
from timebill_ros.engine.cuda.variants import MAX_BATCH
from timebill_ros.engine.kv_cache import KVCache
from timebill_ros.query import Sampling


# A thread that sleeps until the device says that it is done is woken 0.1 to 0.2 ms late, and never
# as late; and what it does next is slower the longer it slept. So the host sleeps by the clock
# until a step of its kind may be over in so long, for this share of the step at least, and then
# waits busily. (Without any sleep Linux would stop a SCHED_FIFO thread 50 ms of every second.)
_BUSY_S = 2e-3
_LEAST_ASLEEP = 0.1
_LONGER = 1.01          # the shortest time of a kind of step follows longer ones by so much a step


class StepRunner:
    """
    Runs decode steps for up to eight sequences at a time.

    All tiers use one cache, so every step may name another tier. Lengths, positions, sampling
    parameters and tokens live on the device; a step costs one graph launch, its kernel writes the
    chosen tokens to the host's memory, and at most one step is in flight.
    """

    def __init__(self, step: DecodeStep, tiers: Iterable[Tier], cache: KVCache) -> None:
        """Take the parts; graphs are captured at first use or by ``warm_up``."""
        self._step, self._cache = step, cache
        self._tiers = {tier.name: tier for tier in tiers}
        step.state.chosen = torch.zeros(MAX_BATCH, dtype=torch.int32).pin_memory()
        self._rows_host = torch.full((MAX_BATCH,), -1, dtype=torch.int32).pin_memory()
        self._rows: Tuple[int, ...] = ()
        self._done = torch.cuda.Event()                     # waited for busily
        self._kind: Tuple[str, int] = ('', 0)               # of the newest step: tier and width
        self._began_s = 0.0
        self._shortest_s: Dict[Tuple[str, int], float] = {}
        self._graphs: Dict[Tuple[str, int], torch.cuda.CUDAGraph] = {}

    @property
    def tiers(self) -> List[str]:
        """Names of the tiers that are loaded."""
        return list(self._tiers)

    @property
    def tap(self) -> torch.Tensor:
        """Hidden states after the tapped layer, [8, d_model]: the rows of the newest step."""
        return self._step.tap

    @property
    def logits(self) -> torch.Tensor:
        """Scores of the vocabulary, [8, vocab_size] float32: the rows of the newest step."""
        return self._step.state.logits

    @torch.inference_mode()
    def start(self, slot: int, token: int, sampling: Sampling, seen: Sequence[int]) -> None:
        """
        Begin decoding in a slot whose prompt is in the cache (and evicted from).

        ``token`` is the first token of the response; ``seen`` holds the prompt's ids, which the
        repetition penalty applies to as well.
        """
        state = self._step.state
        self.move(slot)
        state.tokens[slot] = token
        state.temperature[slot] = 0.0 if sampling.greedy else sampling.temperature
        state.top_k[slot] = sampling.top_k
        state.top_p[slot], state.penalty[slot] = sampling.top_p, sampling.repetition_penalty
        state.seed[slot] = secrets.randbits(62) if sampling.seed is None else sampling.seed
        state.seen[slot].zero_()
        state.seen[slot, torch.tensor([*seen, token], device=state.seen.device)] = 1

    @torch.inference_mode()
    def move(self, slot: int) -> None:
        """Tell the device a slot's length and position after the host changed them (eviction)."""
        self._step.state.lengths[slot] = self._cache.length[slot]
        self._step.state.positions[slot] = self._cache.position[slot]

    def step(self, tier: str, slots: Sequence[int]) -> List[int]:
        """Run one step for the sequences in ``slots``; returns their next tokens in that order."""
        self.enqueue(tier, slots)
        return self.collect()

    @torch.inference_mode()
    def enqueue(self, tier: str, slots: Sequence[int]) -> None:
        """Start a step without waiting for it."""
        rows = tuple(slots) + (-1,) * (MAX_BATCH - len(slots))
        self._kind = tier, WIDTHS[bisect.bisect_left(WIDTHS, len(slots))]
        graph = self._graph(*self._kind)
        if rows != self._rows:
            self._rows_host.copy_(torch.tensor(rows, dtype=torch.int32))
            self._step.state.slot_of_row.copy_(self._rows_host, non_blocking=True)
            self._rows = rows
        self._began_s = time.perf_counter()
        graph.replay()
        self._done.record()
        for slot in slots:
            self._cache.advance(slot, 1)

    def collect(self) -> List[int]:
        """Wait for the step and return its tokens."""
        self._wait()
        return self._step.state.chosen[:sum(slot >= 0 for slot in self._rows)].tolist()

    def _wait(self) -> None:
        """Sleep for the most part of the step, then keep a core busy until it is done."""
        shortest_s = self._shortest_s.get(self._kind, 0.0)
        asleep_s = max(shortest_s - _BUSY_S, _LEAST_ASLEEP * shortest_s)
        left_s = self._began_s + asleep_s - time.perf_counter()
        if left_s > 0.0:
            time.sleep(left_s)
        self._done.synchronize()
        took_s = time.perf_counter() - self._began_s
        self._shortest_s[self._kind] = min(took_s, (shortest_s or took_s) * _LONGER)

    def warm_up(self, widths: Sequence[int] = WIDTHS) -> None:
        """Capture the graphs of all tiers for these widths, so that no query pays for it."""
        for tier in self._tiers:
            for width in widths:
                self._graph(tier, width)

    def _graph(self, tier: str, width: int) -> torch.cuda.CUDAGraph:
        graph = self._graphs.get((tier, width))
        if graph is None:
            state = self._step.state
            state.slot_of_row.fill_(-1)                  # a first run that touches nobody
            self._rows = ()
            self._step.launch(self._tiers[tier], width)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step.launch(self._tiers[tier], width)
            self._graphs[tier, width] = graph
        return graph
