# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill bench evict``: what an eviction costs, and what it saves beside what a tier saves."""

import argparse
import statistics

from timebill_ros.budget.kept import kept_tokens
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.meter import EngineMeter
from timebill_ros.experiments import engine_bench as bench

LENGTHS = (2048, 8192, 32768)
ALPHAS = (0.5, 0.95)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    bench.add_arguments(parser)
    parser.add_argument('--answer', type=int, default=256, help='tokens of the answer')


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print tables or one JSON object."""
    engine, _ = bench.open_engine(arguments)
    report = bench.head(engine, 'evict')
    lengths = bench.lengths(arguments, engine, LENGTHS, arguments.answer + 64)
    report['evictions'] = evictions(engine, lengths, arguments.repeats)
    report['worth'] = worth(engine, lengths, arguments.answer, arguments.repeats)
    return bench.show(report, arguments.json)


def evictions(engine: Engine, lengths: list[int], repeats: int) -> list[bench.Row]:
    """Return a row per length and alpha."""
    meter = EngineMeter(engine)
    rows = []
    for length in lengths:
        for alpha in ALPHAS:
            times = [meter.measure_evict(length, alpha) for _ in range(repeats + 2)][2:]
            rows.append({'tokens': length, 'alpha': alpha, 'ms': bench.median_ms(times),
                         'max_ms': round(1e3 * max(times), 4)})
    return rows


def worth(engine: Engine, lengths: list[int], answer: int, repeats: int) -> list[bench.Row]:
    """
    Return the seconds that an answer of ``answer`` tokens takes, and what each choice saves of it.

    A step's time grows linearly with what is cached, so that of the answer's middle stands for all.
    """
    meter, best = EngineMeter(engine), engine.info.tiers[0]

    def decode_s(n_kept: int, tier: str) -> float:
        times = meter.measure_decode_step(n_kept + answer // 2, max(5, repeats), tier)
        return (answer - 1) * statistics.median(times)

    rows = []
    for length in lengths:
        full_s = decode_s(length, best)
        row: bench.Row = {'tokens': length, 'answer': answer, f'{best}_s': round(full_s, 4)}
        for alpha in ALPHAS:
            cost_s = statistics.median(meter.measure_evict(length, alpha) for _ in range(3))
            left_s = decode_s(kept_tokens(length, alpha), best) + cost_s
            row[f'saved_by_alpha_{alpha:g}_s'] = round(full_s - left_s, 4)
        for tier in engine.info.tiers[1:]:
            row[f'saved_by_{tier}_s'] = round(full_s - decode_s(length, tier), 4)
        rows.append(row)
    return rows
