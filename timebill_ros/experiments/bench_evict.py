# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill bench evict``: what an eviction costs, and what it saves beside what a tier saves."""

import argparse
import statistics

from timebill_ros.budget.kept import kept_tokens
from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.meter import EngineMeter
from timebill_ros.experiments import bench_decode, engine_bench as bench
from timebill_ros.experiments.report_file import deliver

LENGTHS = (2048, 8192, 32768)
STEP_LENGTHS = (128, 512, 2048, 8192)
ALPHAS = (0.5, 0.95)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    bench.add_arguments(parser)
    parser.add_argument('--answer', type=int, default=256, help='tokens of the answer')


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print tables or one JSON object."""
    engine, model = bench.open_engine(arguments)
    report = bench.head(engine, 'evict')
    lengths = bench.lengths(arguments, engine, LENGTHS, arguments.answer + 64)
    report['evictions'] = evictions(engine, lengths, arguments.repeats)
    report['worth'] = worth(
        engine, model.config, lengths, arguments.answer, arguments.repeats)
    deliver(report, arguments, bench.text)
    return 0


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


def worth(engine: Engine, config: ModelConfig, lengths: list[int], answer: int,
          repeats: int) -> list[bench.Row]:
    """Return the rows of ``worth_rows`` for an engine."""
    longest = max(lengths)
    grid = [length for length in STEP_LENGTHS if length < longest] + [longest]
    bench_decode.measure(engine, config, 1.0, grid[-1:], [1], repeats)          # warms up
    steps = bench_decode.measure(engine, config, 1.0, grid, [1], max(30, repeats))
    return worth_rows(steps, evictions(engine, lengths, repeats), lengths, answer)


def worth_rows(steps: list[bench.Row], evicted: list[bench.Row], lengths: list[int],
               answer: int) -> list[bench.Row]:
    """
    Return what an answer of ``answer`` tokens takes, and what each choice saves of it.

    ``steps`` as of ``bench_decode.measure``, of which each tier's line through its times at one
    sequence is used; ``evicted`` as of ``evictions``, whose times are taken off.
    """
    tiers = list(dict.fromkeys(step['tier'] for step in steps))
    lines = {tier: line([(step['cached_tokens'], step['ms']) for step in steps
                         if step['tier'] == tier and step['width'] == 1]) for tier in tiers}
    costs = {(row['tokens'], row['alpha']): row['ms'] for row in evicted}

    def decode_ms(tier: str, n_kept: int) -> float:
        slope, offset = lines[tier]
        return (answer - 1) * (offset + slope * (n_kept + answer / 2))

    rows = []
    for length in lengths:
        full_ms = decode_ms(tiers[0], length)
        row: bench.Row = {'tokens': length, 'answer': answer, f'{tiers[0]}_ms': round(full_ms, 1)}
        for alpha in ALPHAS:
            left_ms = decode_ms(tiers[0], kept_tokens(length, alpha)) + costs[length, alpha]
            row[f'saved_by_alpha_{alpha:g}_ms'] = round(full_ms - left_ms, 1)
        for tier in tiers[1:]:
            row[f'saved_by_{tier}_ms'] = round(full_ms - decode_ms(tier, length), 1)
        rows.append(row)
    return rows


def line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Return slope and offset of the least-squares line through (x, y); one point: slope 0."""
    mean_x = statistics.fmean(x for x, _ in points)
    mean_y = statistics.fmean(y for _, y in points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    return slope, mean_y - slope * mean_x
