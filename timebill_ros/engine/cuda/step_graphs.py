# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Decode steps as CUDA graphs, one per tier and batch width: captured, launched, waited for."""

from collections import deque
import time
from typing import Deque, Iterable, NamedTuple, Sequence

import torch

from timebill_ros.engine.cuda.decode_step import DecodeStep, WIDTHS
from timebill_ros.engine.cuda.tiers import Tier
from timebill_ros.engine.cuda.variants import MAX_BATCH

# A thread that sleeps until the device says that it is done is woken 0.1 to 0.2 ms late, and never
# as late; and what it does next is slower the longer it slept. So the host sleeps by the clock
# until a step of its kind may be over in so long, for this share of the step at least, and then
# waits busily. (Without any sleep Linux would stop a SCHED_FIFO thread 50 ms of every second.)
_BUSY_S = 2e-3
_LEAST_ASLEEP = 0.1
_LONGER = 1.01          # the shortest time of a kind of step follows longer ones by so much a step


class _Launched(NamedTuple):
    """A step that is under way."""

    kind: tuple[str, int]       # tier and width
    launched_s: float
    done: torch.cuda.Event


class StepGraphs:
    """What a ``StepRunner`` launches with on a GPU; at most two steps are under way."""

    def __init__(self, step: DecodeStep, tiers: Iterable[Tier]) -> None:
        """Take the parts; graphs are captured at first use or by ``warm_up``."""
        self._step = step
        self._tiers = {tier.name: tier for tier in tiers}
        step.state.chosen = torch.zeros_like(step.state.chosen, device='cpu').pin_memory()
        self._rows_host = torch.full((MAX_BATCH,), -1, dtype=torch.int32).pin_memory()
        self._rows: tuple[int, ...] = ()
        self._events = [torch.cuda.Event() for _ in range(2)]   # waited for busily, in turns
        self._under_way: Deque[_Launched] = deque()
        self._ended_s = 0.0                                 # of the newest step that is over
        self._shortest_s: dict[tuple[str, int], float] = {}
        self._graphs: dict[tuple[str, int], torch.cuda.CUDAGraph] = {}

    @property
    def tiers(self) -> list[str]:
        """Names of the tiers that are loaded."""
        return list(self._tiers)

    def launch(self, tier: str, width: int, rows: tuple[int, ...]) -> None:
        """Start a step of ``rows`` [MAX_BATCH], slots, -1: nobody; those before had the same."""
        graph = self._graph(tier, width)
        if rows != self._rows:      # the copy of the rows before came before a step that is over
            self._rows_host.copy_(torch.tensor(rows, dtype=torch.int32))
            self._step.state.slot_of_row.copy_(self._rows_host, non_blocking=True)
            self._rows = rows
        launched = _Launched((tier, width), time.perf_counter(), self._events[0])
        graph.replay()
        launched.done.record()
        self._under_way.append(launched)
        self._events.reverse()

    def sleep(self) -> None:
        """Sleep for the most part of the oldest step that is under way."""
        oldest = self._under_way[0]
        shortest_s = self._shortest_s.get(oldest.kind, 0.0)
        left_s = max(oldest.launched_s, self._ended_s) + shortest_s - time.perf_counter()
        least_s = _LEAST_ASLEEP * shortest_s
        if left_s > 3.0 * least_s:          # else the host has come too late for that
            time.sleep(max(left_s - _BUSY_S, least_s))

    def wait(self) -> None:
        """Keep a core busy until that one is done."""
        oldest = self._under_way.popleft()
        oldest.done.synchronize()
        began_s = max(oldest.launched_s, self._ended_s)
        self._ended_s = time.perf_counter()
        took_s = self._ended_s - began_s
        shortest_s = self._shortest_s.get(oldest.kind, took_s)
        self._shortest_s[oldest.kind] = min(took_s, shortest_s * _LONGER)

    def warm_up(self, widths: Sequence[int] = WIDTHS) -> None:
        """Capture the graphs of all tiers for these widths, so that no query pays for it."""
        for tier in self._tiers:
            for width in widths:
                self._graph(tier, width)

    def _graph(self, tier: str, width: int) -> torch.cuda.CUDAGraph:
        graph = self._graphs.get((tier, width))
        if graph is None:
            self._step.state.slot_of_row.fill_(-1)       # a first run that touches nobody
            self._rows = ()
            self._step.launch(self._tiers[tier], width)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step.launch(self._tiers[tier], width)
            self._graphs[tier, width] = graph
        return graph
