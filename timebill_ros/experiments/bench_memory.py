# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill bench memory``: whether thousands of queries of mixed lengths make the engine grow."""

import argparse
from pathlib import Path
import random

from timebill_ros.engine.engine import Engine
from timebill_ros.experiments import engine_bench as bench
from timebill_ros.experiments.report_file import deliver

_STEPS = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    bench.add_arguments(parser)
    parser.add_argument('--queries', type=int, default=2000)
    parser.add_argument('--longest', type=int, default=2048, help='tokens of the longest prompt')


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print a table or one JSON object."""
    engine, _ = bench.open_engine(arguments)
    report = bench.head(engine, 'memory')
    report['rows'] = measure(engine, arguments.queries, arguments.longest)
    deliver(report, arguments, bench.text)
    return 0


def measure(engine: Engine, queries: int, longest: int) -> list[bench.Row]:
    """Return the memory after each tenth of the queries."""
    rng, rows = random.Random(3), []
    longest = min(longest, engine.info.max_context - _STEPS - 2)
    for number in range(1, queries + 1):
        answer(engine, rng, longest if number == 1 else int(longest ** rng.random()))
        if number % max(1, queries // 10) == 0:
            rows.append({'queries': number, 'resident_mib': round(resident_bytes() / 2 ** 20, 1),
                         'device_mib': round(engine.device_memory_bytes / 2 ** 20, 1)})
    return rows


def answer(engine: Engine, rng: random.Random, n_prompt: int) -> None:
    """Run a query of this length to its end, some with eviction."""
    ids = [rng.randrange(engine.info.vocab_size) for _ in range(max(1, n_prompt))]
    seq = engine.open_sequence(ids, len(ids) + _STEPS + 2)
    try:
        while not engine.prefill_chunk(seq):
            pass
        engine.next_token(seq)
        engine.evict(seq, rng.choice((0.0, 0.5, 0.95)))
        for _ in range(_STEPS):
            engine.decode_step([seq], rng.choice(engine.info.tiers))
    finally:
        engine.close(seq)


def resident_bytes() -> int:
    """Return the memory of this process."""
    for line in Path('/proc/self/status').read_text().splitlines():
        if line.startswith('VmRSS:'):
            return int(line.split()[1]) * 1024
    raise RuntimeError('/proc/self/status has no VmRSS')
