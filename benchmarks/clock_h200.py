# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
What a prompt does to a GPU's clock, and what times of one length vary by; random weights.

    PYTHONPATH=. python3 benchmarks/clock_h200.py --shape qwen2.5-7b --out docs/measurements

Needs torch and the GPU's management library; writes clock-SHAPE-h200.json: ``clock``, what the
driver says of the clock while a long prompt is answered; ``behind``, decode steps by their number
behind prompts of several lengths; ``repeats``, prompts of the same length again and again.
"""

import argparse
import ctypes
import json
import os
from pathlib import Path
import random
from statistics import fmean, pstdev
import sys
import threading
import time
from typing import Any

from timebill_ros.engine.threads import prepare_environment

prepare_environment()

import torch  # noqa: E402, I100

from timebill_ros.engine.cuda.prefill_graphs import GraphedPrompt  # noqa: E402
from timebill_ros.engine.meter import any_planning, NotedEngine  # noqa: E402
from timebill_ros.engine.unattended import answer, question  # noqa: E402
from timebill_ros.executor.messages import Load  # noqa: E402
from timebill_ros.experiments.bench_accuracy import random_engine  # noqa: E402
from timebill_ros.query import QueryTiming, Sampling  # noqa: E402

TIERS = ['bf16', 'int8', 'int4']
LONG = 16384
BEHIND = (256, 1000, 2048, 3000, 4096, 8000, 16384, 30000)      # tokens of prompt
REPEATED = (100, 340, 800, 1500)
STEPS = 97
GROUPS = ((0, 1), (1, 8), (8, 16), (16, 24), (24, 32), (32, 48), (48, 64))
SETTLED = 64                # the first step that the groups are compared with
_SM_CLOCK, _POWER_CAP = 1, 0x4      # of the management library
_PAUSE_S = 0.15


class Asker:
    """Asks queries of made-up prompts."""

    def __init__(self, shape: str) -> None:
        self.engine = random_engine(shape, Load(
            'embedded', 'cuda', max_batch=4, max_context=max(BEHIND) + STEPS + 100, tiers=TIERS))
        self.rng = random.Random(5)
        self._sampling = Sampling(**self.engine.info.sampling)

    def ids(self, n_tokens: int) -> list[int]:
        return [self.rng.randrange(256, self.engine.info.vocab_size) for _ in range(n_tokens)]

    def ask(self, ids: list[int], n_tokens: int, tier: str) -> tuple[QueryTiming, list[float]]:
        """Return the record of a query, and the times of its steps in seconds."""
        noted = NotedEngine(self.engine)
        timing, = answer(noted, any_planning(self.engine.info, [tier]), [
            (question(0, n_tokens, self._sampling), ids)])
        return timing, noted.step_s.get(1, [])


class Gauge:
    """Clock, power and why the clock is what it is, as the driver knows them, every 4 ms."""

    def __init__(self) -> None:
        self._library, self._device = ctypes.CDLL('libnvidia-ml.so.1'), ctypes.c_void_p()
        self._library.nvmlInit_v2()
        index = int(os.environ.get('CUDA_VISIBLE_DEVICES', '0').split(',')[0] or 0)
        self._library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(self._device))
        self.seen: list[tuple[float, int, bool]] = []       # moment, MHz, at the power cap

    def watch(self, over: threading.Event) -> None:
        """Note what there is until that is over."""
        mhz, reasons = ctypes.c_uint(), ctypes.c_ulonglong()
        while not over.is_set():
            self._library.nvmlDeviceGetClockInfo(self._device, _SM_CLOCK, ctypes.byref(mhz))
            self._library.nvmlDeviceGetCurrentClocksThrottleReasons(
                self._device, ctypes.byref(reasons))
            self.seen.append((
                time.perf_counter(), mhz.value, bool(reasons.value & _POWER_CAP)))
            time.sleep(0.004)


def clock(asker: Asker) -> list[dict[str, Any]]:
    """Return what the clock does around a long prompt."""
    rows = []
    for tier in TIERS:
        ids, gauge, over = asker.ids(LONG), Gauge(), threading.Event()
        time.sleep(2 * _PAUSE_S)
        thread = threading.Thread(target=gauge.watch, args=(over,))
        thread.start()
        time.sleep(_PAUSE_S)
        began_s = time.perf_counter()
        timing, _ = asker.ask(ids, STEPS + 1, tier)
        time.sleep(2 * _PAUSE_S)
        over.set()
        thread.join()
        before = max(mhz for at_s, mhz, _ in gauge.seen if at_s < began_s)
        during = [each for each in gauge.seen if each[0] >= began_s]
        low = [at_s - began_s for at_s, mhz, _ in during if mhz < 0.95 * before]
        rows.append({
            'tier': tier, 'tokens': LONG, 'prefill_ms': round(1e3 * timing.prefill, 1),
            'before_mhz': before, 'lowest_mhz': min(mhz for _, mhz, _ in during),
            'low_from_ms': round(1e3 * min(low, default=0.0)),
            'low_until_ms': round(1e3 * max(low, default=0.0)),
            'power_cap': any(cap for _, mhz, cap in during if mhz < 0.95 * before)})
    return rows


def behind(asker: Asker) -> list[dict[str, Any]]:
    """Return how much longer the steps of a response take by their number."""
    rows = []
    for n_prompt in BEHIND:
        for tier in TIERS:
            found, prefills = [], []
            for _ in range(3):
                ids = asker.ids(n_prompt)
                time.sleep(_PAUSE_S)
                timing, steps = asker.ask(ids, STEPS + 1, tier)
                found.append(steps)
                prefills.append(timing.prefill)
            settled = fmean(each for steps in found for each in steps[SETTLED:])
            rows.append({
                'tier': tier, 'tokens': n_prompt, 'prefill_ms': round(1e3 * fmean(prefills), 2),
                'settled_ms': round(1e3 * settled, 4), 'ratios': [
                    round(fmean(each for steps in found for each in steps[first:last]) / settled, 4)
                    for first, last in GROUPS]})
    return rows


def repeats(asker: Asker) -> list[dict[str, Any]]:
    """Return what prompts of one length take the device, and all in all."""
    marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
    run = GraphedPrompt.run

    def marked(self: GraphedPrompt) -> None:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record()
        run(self)
        ended.record()
        marks.append((began, ended))

    found: dict[int, list[tuple[float, float]]] = {n: [] for n in REPEATED}
    GraphedPrompt.run = marked      # type: ignore[method-assign]
    for _ in range(24):
        for n_prompt in REPEATED:
            ids = asker.ids(n_prompt)
            time.sleep(asker.rng.uniform(0.05, 0.25))
            marks.clear()
            timing, _ = asker.ask(ids, 1, TIERS[0])
            torch.cuda.synchronize()
            found[n_prompt].append((1e3 * timing.prefill, marks[0][0].elapsed_time(marks[-1][1])))
    GraphedPrompt.run = run         # type: ignore[method-assign]
    rows = []
    for n_prompt, times in found.items():
        alls, devices = zip(*times)
        hosts = [whole - device for whole, device in times]
        rows.append({
            'tokens': n_prompt, 'prompts': len(times),
            'prefill_ms': round(fmean(alls), 3), 'prefill_deviation': round(
                pstdev(alls) / fmean(alls), 4),
            'device_ms': round(fmean(devices), 3), 'device_deviation': round(
                pstdev(devices) / fmean(devices), 4),
            'host_ms': round(fmean(hosts), 3), 'host_deviation_ms': round(pstdev(hosts), 3)})
    return rows


def main() -> int:
    """Measure all three and write them; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--shape', default='qwen2.5-7b')
    parser.add_argument('--out', type=Path, required=True)
    arguments = parser.parse_args()
    asker = Asker(arguments.shape)
    for _ in range(3):
        asker.ask(asker.ids(1000), 8, TIERS[0])
    result = {'shape': arguments.shape, 'device': torch.cuda.get_device_name(),
              'torch': torch.__version__, 'date': time.strftime('%Y-%m-%d')}
    path = arguments.out / f'clock-{arguments.shape}-h200.json'
    for part in (clock, behind, repeats):
        result[part.__name__] = part(asker)
        path.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
        print(json.dumps(result[part.__name__]), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
