# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Real queries through the engine, their times beside what was predicted of them. Needs torch.

Each query has a random prompt length, eviction ratio, response length and tier, none of them
chosen by the profile. It is predicted twice: with the profile alone, and with what drift tracking
made of it from the queries before. Some are asked twice in a row: by what their times differ, no
prediction can be blamed for. Beside each query it is noted how fast the host's processor is just
then, and, on a CPU if wanted, at which bandwidth memory is read: decode steps take what reading the
weights takes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import exp, log
import os
import random
from statistics import fmean
import subprocess
import sys
import time
from typing import Any

import torch

from timebill_ros.budget.planner import PlannerConfig, Planning
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.meter import NotedEngine
from timebill_ros.engine.unattended import answer, question
from timebill_ros.executor.messages import Load
from timebill_ros.query import QueryTiming, Sampling
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import DECODE_STEP, EVICT, OVERHEAD, PREFILL
from timebill_ros.time_estimator.query_samples import Sample, samples_of
from timebill_ros.time_estimator.tracking import DriftTracker, TrackingConfig

STAGES = {PREFILL: 'prefill', DECODE_STEP: 'decode', EVICT: 'evict', OVERHEAD: 'overhead'}
_SHORTEST = 64
_LARGEST_ALPHA = 0.95
_LOAD_CPU = 'while True: pass'
_LOAD_CUDA = """
import torch
a = torch.randn(2048, 2048, device='cuda', dtype=torch.bfloat16)
while True:
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
"""
_LOAD_STARTS_S = {'cpu': 0.5, 'cuda': 8.0}
_READ_BYTES = 192 * 2 ** 20     # several times what caches hold
_READS = 3
_EARLY_STEPS = 8
_GAP_S = (0.05, 0.25)       # between queries: a planner does something with an answer
_LATE_STEP = 20     # the first of those that _EARLY_STEPS are compared with
_HOST_OBJECTS = 20_000     # about 1 MB: more than the nearest caches hold


@dataclass(frozen=True)
class Span:
    """What random queries are drawn from."""

    longest: int            # prompt, tokens
    responses: tuple[int, int]


class Asker:
    """Draws queries, has them answered, and notes what was measured and predicted."""

    def __init__(self, engine: Engine, base: TimingCoefficients, span: Span, seed: int = 1,
                 read_bandwidth: bool = False) -> None:
        """Predict with ``base``, and with what is tracked from the queries of this asker."""
        self.rows: list[dict[str, Any]] = []
        self._numbers = _scattered()
        self._memory = torch.zeros(_READ_BYTES // 4) if read_bandwidth else None
        self.engine = engine
        self._base = base
        self._span = span
        self._rng = random.Random(seed)
        self._tracker = DriftTracker(base, TrackingConfig())
        self._tracked = base

    def ask(self, phase: str, twice: bool = False) -> None:
        """Answer one query, and the same again if ``twice``; append its row."""
        engine, rng = self.engine, self._rng
        first, last = self._span.responses
        n_response = rng.randint(first, last)
        longest = min(self._span.longest, engine.info.max_context - n_response - 1)
        n_prompt = round(exp(rng.uniform(log(_SHORTEST), log(longest))))
        alpha = rng.choice([0.0, rng.uniform(0.0, _LARGEST_ALPHA)])
        tier = rng.choice(engine.info.tiers)
        ids = [rng.randrange(256, engine.info.vocab_size) for _ in range(n_prompt)]
        time.sleep(rng.uniform(*_GAP_S))
        began_s = time.perf_counter()
        noted = NotedEngine(engine)
        timing = self.answer(noted, ids, n_response, alpha, tier)
        wall_s = time.perf_counter() - began_s
        row = {
            'phase': phase, 'n_prompt': n_prompt, 'alpha': round(timing.alpha, 4), 'tier': tier,
            'n': timing.n_generated, 'wall_s': round(wall_s, 7),
            'stages': {STAGES[each.law]: _row(each, self._base, self._tracked)
                       for each in samples_of(timing)}}
        if twice:
            time.sleep(rng.uniform(*_GAP_S))
            row['again'] = {STAGES[each.law]: round(each.measured_s, 7) for each in
                            samples_of(self.answer(engine, ids, n_response, alpha, tier))}
        steps_s = noted.step_s.get(1, [])
        if len(steps_s) >= 2 * _LATE_STEP:
            row['early_ratio'] = round(
                fmean(steps_s[:_EARLY_STEPS]) / fmean(steps_s[_LATE_STEP - 1:]), 4)
        row['host_ms'] = _host_ms(self._numbers)
        if self._memory is not None:
            row['read_gb_s'] = _read_gb_s(self._memory)
        self.rows.append(row)
        self._tracker.observe(timing, self._tracked)
        if self._tracker.moved:
            self._tracked = self._tracker.publish(self._tracked.stamp_ns + 1)

    def answer(
            self, engine: Any, ids: list[int], n_response: int, alpha: float, tier: str,
            ) -> QueryTiming:
        """Answer a prompt with so many tokens and return the query's record."""
        config = PlannerConfig(policy='fixed', fixed_alpha=alpha, fixed_tier=tier)
        planning = Planning(TimeEstimator(self._base, tier), config, 'profile')
        query = question(0, n_response, Sampling(**engine.info.sampling))
        return answer(engine, planning, [(query, ids)])[0]


def _scattered() -> list[int]:
    """Return numbers whose objects lie in memory in another order than in the list."""
    numbers = [10 ** 6 + index for index in range(_HOST_OBJECTS)]
    random.Random(3).shuffle(numbers)
    return numbers


def _host_ms(numbers: list[int]) -> float:
    """Return what adding the numbers one by one takes now: a median."""
    times = []
    for _ in range(_READS):
        total, began_s = 0, time.perf_counter()
        for each in numbers:
            total += each
        times.append(time.perf_counter() - began_s)
    return round(1e3 * sorted(times)[_READS // 2], 4)


def _read_gb_s(memory: torch.Tensor) -> float:
    """Return at how many gigabytes a second (1e9) all threads read the memory now: a median."""
    times = []
    for _ in range(_READS):
        began_s = time.perf_counter()
        memory.max()
        times.append(time.perf_counter() - began_s)
    return round(memory.nbytes / sorted(times)[_READS // 2] / 1e9, 1)


def _row(sample: Sample, base: TimingCoefficients, tracked: TimingCoefficients) -> list[float]:
    """Return measured, predicted, worst (base), predicted, worst (tracked), seconds; and steps."""
    found = [sample.measured_s]
    for each in (base, tracked):
        found += [sample.seconds(each), sample.worst_s(each)]
    return [round(value, 7) for value in found] + [sample.steps]


@contextmanager
def device_load(device: torch.device) -> Iterator[None]:
    """Keep the device busy from other processes: one on a GPU, one per core on a CPU."""
    cuda = device.type == 'cuda'
    count = 1 if cuda else len(os.sched_getaffinity(0))
    program = _LOAD_CUDA if cuda else _LOAD_CPU
    others = [subprocess.Popen([sys.executable, '-c', program]) for _ in range(count)]
    try:
        time.sleep(_LOAD_STARTS_S[device.type])
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextmanager
def cpu_threads(asker: Asker, load: Load, count: int) -> Iterator[None]:
    """Have the queries answered by an engine with another number of threads meanwhile."""
    before, profiled = torch.get_num_threads(), asker.engine
    asker.engine = Engine.load(replace(load, threads=count))
    try:
        yield
    finally:
        asker.engine = profiled
        torch.set_num_threads(before)


def batches(engine: Engine, base: TimingCoefficients, steps: int, longest: int,
            repeats: int) -> list[dict[str, Any]]:
    """Measure steps of several sequences of random lengths, and predict them."""
    rng, rows = random.Random(2), []
    for width in range(2, engine.info.max_batch + 1):
        for tier in engine.info.tiers:
            for _ in range(repeats):
                lengths = [rng.randint(_SHORTEST, max(_SHORTEST, longest // width))
                           for _ in range(width)]
                took_s = _together(engine, lengths, steps, tier)
                predicted_s = TimeEstimator(base, tier).decode_s(
                    sum(lengths) / width + 1, steps, width=width)
                rows.append({'width': width, 'tier': tier, 'lengths': lengths, 'steps': steps,
                             'seconds': round(took_s, 7), 'predicted_s': round(predicted_s, 7)})
    return rows


def _together(engine: Engine, lengths: list[int], steps: int, tier: str) -> float:
    sampling = Sampling(**engine.info.sampling)
    opened = []
    try:
        for n in lengths:
            ids = [index % engine.info.vocab_size for index in range(7, 7 + n)]
            opened.append(engine.open_sequence(ids, n + steps + 3, sampling))
            engine.assume_prefilled(opened[-1], n)
            opened[-1].tokens.append(ids[-1])
        engine.decode_step(opened, tier, _goes_on)
        began_s = time.perf_counter()
        for _ in range(steps):
            engine.decode_step(opened, tier, _goes_on)
        return time.perf_counter() - began_s
    finally:
        for sequence in opened:
            engine.close(sequence)


def _goes_on(over: bool) -> bool:
    """Tell the engine that the same step will be asked for next, as it is in a server."""
    return True


def mixed(engine: Engine, base: TimingCoefficients, n_prompts: list[int]) -> list[dict[str, Any]]:
    """Measure a prefill whose units take turns with the decode steps of another sequence."""
    rows, estimator = [], TimeEstimator(base, engine.info.tiers[0])
    sampling = Sampling(**engine.info.sampling)
    for n_prompt in n_prompts:
        decoding = engine.open_sequence(list(range(7, 135)), 128 + 4096, sampling)
        engine.assume_prefilled(decoding, 128)
        decoding.tokens.append(7)
        engine.decode_step([decoding])
        ids = [index % engine.info.vocab_size for index in range(7, 7 + n_prompt)]
        coming = engine.open_sequence(ids, n_prompt + 1, sampling)
        steps, began_s, done = 0, time.perf_counter(), False
        while not done:
            done = engine.prefill_chunk(coming)
            engine.decode_step([decoding])
            steps += 1
        engine.next_token(coming)
        took_s = time.perf_counter() - began_s
        engine.close(coming)
        engine.close(decoding)
        predicted_s = estimator.prefill_s(n_prompt) + estimator.decode_s(129, steps)
        rows.append({'n_prompt': n_prompt, 'steps': steps, 'seconds': round(took_s, 7),
                     'predicted_s': round(predicted_s, 7)})
    return rows


def run_phase(
        asker: Asker, phase: str, queries: int, context: Callable[[], Any],
        tell: Callable[[str], None], repeat: int = 0) -> None:
    """Ask so many queries within a context, each ``repeat``-th of them twice in a row; 0 = none."""
    with context():
        for number in range(queries):
            asker.ask(phase, repeat > 0 and (number + 1) % repeat == 0)
            tell(f'{phase}: {number + 1} of {queries}')


def laws_of(base: TimingCoefficients) -> list[dict[str, Any]]:
    """Return what the report shows of each law."""
    return [{name: value for name, value in {**asdict(law), 'title': law.title}.items()
             if name in ('title', 'form', 'mape', 'worst_ratio', 'correlation', 'samples')}
            for law in base.laws]
