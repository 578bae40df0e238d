# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill bench tail``: thousands of consecutive steps: how far the worst are off the median."""

import argparse

from timebill_ros.engine.engine import Engine
from timebill_ros.engine.meter import EngineMeter
from timebill_ros.executor import garbage, realtime
from timebill_ros.experiments import engine_bench as bench
from timebill_ros.experiments.report_file import deliver

SHARES = (0.5, 0.99, 0.999, 1.0)
# A sequence grows by a token a step; after so many, one of the first length takes over.
_STEPS_OF_ONE = 250


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    bench.add_arguments(parser)
    parser.add_argument('--steps', type=int, default=10000)
    parser.add_argument(
        '--realtime-priority', type=int, default=0, help='SCHED_FIFO, as for "timebill serve"')


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print a table or one JSON object."""
    engine, _ = bench.open_engine(arguments)
    report = bench.head(engine, 'tail')
    lengths = bench.lengths(arguments, engine, (2048,), _STEPS_OF_ONE + 8)
    report['note'] = realtime.claim(arguments.realtime_priority, engine.device.type)
    garbage.settle()
    report['rows'] = [measure(engine, tier, length, arguments.steps)
                      for tier in engine.info.tiers for length in lengths]
    deliver(report, arguments, bench.text)
    return 0


def measure(engine: Engine, tier: str, length: int, steps: int) -> bench.Row:
    """Return the quantiles of ``steps`` steps, in milliseconds."""
    meter = EngineMeter(engine)
    times: list[float] = []
    while len(times) < steps:
        times += meter.measure_decode_step(length, min(_STEPS_OF_ONE, steps - len(times)), tier)
    times.sort()
    row: bench.Row = {'tier': tier, 'cached_tokens': length, 'steps': len(times)}
    for share in SHARES:
        row[f'{share:g}'] = round(1e3 * times[min(len(times) - 1, int(share * len(times)))], 4)
    row['p99.9/median'] = round(row['0.999'] / row['0.5'], 3)
    return row
