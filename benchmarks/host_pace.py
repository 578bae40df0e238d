# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How much of what a GPU is given depends on the host's pace: the same with its core shared."""

from contextlib import contextmanager
import os
from pathlib import Path
import statistics
import subprocess
import sys
import time
from typing import Any, Callable, Iterator

from timebill_ros.engine.cuda.prefill_graphs import PrefillGraphs
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.meter import EngineMeter
from timebill_ros.experiments.bench_prefill import prefill_s

_BURN = 'while True: pass'
_REPEATS = 7


def measure(engine: Engine, lengths: list[int]) -> list[dict[str, Any]]:
    """
    Return a row per length: prefill by graphs, the same launched by kernel, and an eviction.

    Each is the median in milliseconds with the host's core to itself, and how many times as long
    it takes with a busy process on the core's other thread; if it has none, on the same core, at a
    lower priority.
    """
    prefill, meter = engine._prefill, EngineMeter(engine)
    graphs, none = prefill.graphs, PrefillGraphs(prefill.graphs.layers, [], 0, 1.0)
    actions: dict[str, Callable[[int], float]] = {
        'ms': lambda length: sum(prefill_s(engine, [1] * length)),
        'launched_ms': lambda length: sum(prefill_s(engine, [1] * length)),
        'evict_ms': lambda length: meter.measure_evict(length, 0.5)}
    with _own_core() as core:
        rows: list[dict[str, Any]] = []
        for length in lengths:
            row: dict[str, Any] = {'tokens': length}
            for name, action in actions.items():
                prefill.graphs = none if name == 'launched_ms' else graphs
                quiet = _median_s(action, length)
                with _busy(core):
                    slowed = _median_s(action, length)
                row[name], row[name.replace('ms', 'slowed')] = (
                    round(1e3 * quiet, 3), round(slowed / quiet, 3))
            rows.append(row)
        prefill.graphs = graphs
    return rows


def _median_s(action: Callable[[int], float], length: int) -> float:
    return statistics.median([action(length) for _ in range(_REPEATS + 1)][1:])


@contextmanager
def _own_core() -> Iterator[int]:
    """Stay on one core; yields it."""
    allowed = os.sched_getaffinity(0)
    core = max(allowed)
    os.sched_setaffinity(0, {core})
    try:
        yield core
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def _busy(core: int) -> Iterator[None]:
    """Keep the other thread of a core busy; without one the core itself, at a low priority."""
    siblings = Path(f'/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list')
    text = siblings.read_text().strip() if siblings.exists() else str(core)
    first, _, last = text.replace(',', '-').partition('-')
    others = {int(first), int(last or first)} - {core}

    def pin() -> None:
        os.sched_setaffinity(0, others or {core})
        if not others:
            os.nice(5)

    burner = subprocess.Popen([sys.executable, '-c', _BURN], preexec_fn=pin)
    time.sleep(0.05)
    try:
        yield
    finally:
        burner.kill()
        burner.wait()
