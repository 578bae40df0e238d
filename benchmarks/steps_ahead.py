# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Decode steps that go ahead: the same tokens, what they save, and nothing left after a storm.

    python3 benchmarks/steps_ahead.py --out tables [--shape smollm2-135m] [--tokens 400]

Random weights in the shape of a model. Queries are answered as in the server, without a node, with
steps that go ahead and with steps that begin when they are asked for, in turns.
"""

import argparse
import json
from pathlib import Path
import random
import tempfile
import threading
import time
import traceback
from typing import Any, Callable

import torch

from timebill_ros.budget.admission import needs
from timebill_ros.budget.planner import PlanInputs
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.loading import device_name
from timebill_ros.engine.meter import any_planning, NotedEngine
from timebill_ros.engine.unattended import answer, question
from timebill_ros.executor.demand import Pace
from timebill_ros.executor.dispatcher import Dispatcher
from timebill_ros.executor.messages import Finished, Load
from timebill_ros.executor.scheduler import Job, Scheduler
from timebill_ros.experiments.random_model import random_model
from timebill_ros.query import Sampling

SHARES = (0.5, 0.99, 0.999, 1.0)


class Watched(NotedEngine):
    """An engine whose steps are noted, and go ahead or not."""

    def __init__(self, engine: Engine, ahead: bool) -> None:
        super().__init__(engine)
        self._ahead = ahead

    def decode_step(self, sequences: list[Any], tier: str,
                    goes_on: Callable[[bool], bool]) -> list[int]:
        return super().decode_step(
            sequences, tier, goes_on if self._ahead else lambda over: False)


def chosen(engine: Engine, rng: random.Random, ahead: bool, calls: int) -> list[list[int]]:
    """Return the tokens of sequences that join, leave, are evicted from and change tiers."""
    rows: list[Any] = []
    answers: list[list[int]] = []
    at_once = min(4, engine.info.max_batch)
    together, tier = at_once, engine.info.tiers[0]
    for _ in range(calls):
        while len(rows) < together:
            ids = [rng.randrange(3, 900) for _ in range(rng.choice((40, 200, 400)))]
            sampling = rng.choice((Sampling(), Sampling(0.8, 0.9, 50, 1.2, 7), Sampling(
                repetition_penalty=1.3)))
            seq = engine.open_sequence(ids, 600, sampling)
            while not engine.prefill_chunk(seq):
                pass
            engine.next_token(seq)
            rows.append(seq)
            answers.append(seq.tokens)
        event = rng.random()
        if event < 0.06:
            engine.close(rows.pop(rng.randrange(len(rows))))
            together = rng.randint(1, at_once)
        elif event < 0.10:
            engine.evict(rng.choice(rows), rng.choice((0.3, 0.6, 0.9)))
        elif event < 0.16:
            tier = rng.choice(engine.info.tiers)
        elif event < 0.20:
            rng.shuffle(rows)
        elif event < 0.24:
            engine.settle()
        if rows:
            engine.decode_step(rows, tier, lambda over: ahead)
        for seq in [seq for seq in rows if len(seq.tokens) > 150]:
            rows.remove(seq)
            engine.close(seq)
    for seq in rows:
        engine.close(seq)
    return answers


def same_tokens(engine: Engine, scenarios: int) -> dict[str, Any]:
    """Compare the tokens of random scenarios with and without steps that go ahead."""
    result: dict[str, Any] = {'scenarios': scenarios, 'tokens': 0, 'different': []}
    for number in range(scenarios):
        with_, without = (chosen(engine, random.Random(number), ahead, 120)
                          for ahead in (True, False))
        result['tokens'] += sum(len(tokens) for tokens in with_)
        if with_ != without:
            at = [(index, next((i for i, (a, b) in enumerate(zip(x, y)) if a != b), -1))
                  for index, (x, y) in enumerate(zip(with_, without)) if x != y]
            result['different'].append([number, at[:3]])
    return result


def timed(engine: Engine, tier: str, width: int, n_prompt: int, tokens: int,
          repeats: int) -> dict[str, Any]:
    """Return what a token takes, with steps that go ahead and with steps on demand."""
    planning = any_planning(engine.info, [tier])
    row: dict[str, Any] = {'tier': tier, 'width': width, 'n_prompt': n_prompt, 'tokens': tokens}
    steps_ms: dict[str, list[float]] = {'ahead': [], 'asked': []}
    others: dict[str, list[tuple[float, float]]] = {'ahead': [], 'asked': []}
    for _ in range(repeats):
        for name, steps in steps_ms.items():
            watched: Any = Watched(engine, name == 'ahead')
            timings = answer(watched, planning, [
                (question(number, tokens, Sampling()), [3 + number] * n_prompt)
                for number in range(width)])
            steps += [1e3 * step_s for step_s in watched.step_s[width][2:]]
            last = timings[-1]          # the others have waited for its prefill
            others[name].append((1e3 * (last.decode + last.overhead) / (tokens - 1),
                                 1e3 * last.overhead / (tokens - 1)))
    for name, steps in steps_ms.items():
        steps.sort()
        token_ms, overhead_ms = sorted(others[name])[repeats // 2]
        row[name] = {
            'token_ms': round(token_ms, 4), 'overhead_ms': round(overhead_ms, 4),
            'steps': len(steps), 'step': {f'{share:g}': round(
                steps[min(len(steps) - 1, int(share * len(steps)))], 4) for share in SHARES}}
    return row


def storm(engine: Engine, queries: int) -> dict[str, Any]:
    """Drop queries at random moments; return what is left on the device afterwards."""
    planning = any_planning(engine.info, engine.info.tiers)
    rng = random.Random(3)
    before = engine.device_memory_bytes
    scheduler = Scheduler(Pace(planning), engine.info.max_batch)
    lock = threading.RLock()
    dispatcher = Dispatcher(engine, scheduler, lock)
    waits: list[float] = []
    ended, number = 0, 0
    while ended < queries:
        while number < queries and scheduler.n_waiting < 4:
            ids = [rng.randrange(3, 900) for _ in range(rng.choice((30, 300)))]
            query = question(number, 100, Sampling())
            inputs = PlanInputs(len(ids), 100, budget_left_s=0.0, alpha_max=0.0,
                                tiers=tuple(engine.info.tiers))
            need = needs(inputs, planning.estimator, planning.config, engine.chunk_tokens)
            with lock:
                scheduler.submit(Job(query, need, ids, 100), time.monotonic_ns())
            number += 1
        if rng.random() < 0.2:
            query_id = f'{rng.randrange(number):032x}'
            with lock:
                ended += scheduler.drop(query_id) is not None
                dispatcher.drop(query_id)
        began_s = time.perf_counter()
        messages = dispatcher.work()
        waits.append(time.perf_counter() - began_s)
        ended += sum(isinstance(each, Finished) for each in messages or ())
    engine.settle()
    engine.check_device()
    return {'queries': queries, 'longest_unit_ms': round(1e3 * max(waits), 2),
            'slots_left': len(engine._free_slots), 'of': engine.info.max_batch,
            'bytes_more': engine.device_memory_bytes - before}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--shape', default='qwen2.5-7b')
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--tiers', nargs='+', default=['bf16', 'int4'])
    parser.add_argument('--prompt', type=int, default=2048)
    parser.add_argument('--tokens', type=int, default=400)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--scenarios', type=int, default=20)
    parser.add_argument('--storm', type=int, default=150, help='queries')
    arguments = parser.parse_args()
    began_s = time.monotonic()
    device = torch.device(arguments.device)
    dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
    with torch.inference_mode():
        model = random_model(Path(tempfile.mkdtemp()), arguments.shape, device, dtype, 4096)
    engine = Engine(model, Load(
        arguments.shape, arguments.device, tiers=arguments.tiers, max_batch=4))
    result: dict[str, Any] = {
        'device': device_name(device), 'torch': torch.__version__, 'shape': arguments.shape,
        'date': time.strftime('%Y-%m-%d')}

    def part(name: str, do: Callable[[], Any]) -> None:
        try:
            result[name] = do()
        except Exception as error:
            traceback.print_exc()
            result[name] = repr(error)
        print(f'[{time.monotonic() - began_s:5.1f} s] {name} {json.dumps(result[name])}',
              flush=True)
        arguments.out.mkdir(parents=True, exist_ok=True)
        file = arguments.out / f'steps-ahead-{arguments.shape}.json'
        file.write_text(json.dumps(result, indent=1))

    part('notes', lambda: engine.notes)
    part('same', lambda: same_tokens(engine, arguments.scenarios))
    kinds = [*((tier, 1) for tier in engine.info.tiers), (engine.info.tiers[-1], 4)]
    part('ahead', lambda: [
        timed(engine, tier, width, arguments.prompt, arguments.tokens, arguments.repeats)
        for tier, width in kinds])
    part('storm', lambda: storm(engine, arguments.storm))


if __name__ == '__main__':
    main()
