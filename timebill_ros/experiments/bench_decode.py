# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill bench decode``: steps per tier and width, beside what reading the bytes must take."""

import argparse

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.meter import EngineMeter
from timebill_ros.experiments import engine_bench as bench
from timebill_ros.experiments.report_file import deliver

LENGTHS = (512, 8192, 32768)
# Bits of a weight, scales left out; int4 keeps the head at eight.
_BITS = {'fp32': 32, 'bf16': 16, 'fp16': 16, 'int8': 8, 'int4': 4}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    bench.add_arguments(parser)
    parser.add_argument('--widths', type=int, nargs='+', default=[1, 4])


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print a table or one JSON object."""
    engine, model = bench.open_engine(arguments)
    report = bench.head(engine, 'decode')
    bandwidth = bench.read_bandwidth(model.device)
    report['read_bytes_per_s'] = bandwidth
    lengths = bench.lengths(arguments, engine, LENGTHS)
    report['rows'] = measure(engine, model.config, bandwidth, lengths, arguments.widths,
                             max(10, arguments.repeats))
    deliver(report, arguments, bench.text)
    return 0


def measure(engine: Engine, config: ModelConfig, bandwidth: float, lengths: list[int],
            widths: list[int], repeats: int) -> list[bench.Row]:
    """Return a row per tier, width and length: times as the caller sees them, the wait included."""
    meter, rows = EngineMeter(engine), []
    for tier in engine.info.tiers:
        matrices = engine.packed_bytes.get(tier) or weight_bytes(config, tier)
        for width in [each for each in widths if each <= engine.info.max_batch]:
            for length in lengths:
                times = meter.measure_decode_step(length, repeats, tier, width)
                cached = width * length * engine.info.kv_bytes_per_token
                floor_ms = 1e3 * (matrices + cached) / bandwidth
                ms = bench.median_ms(times)
                rows.append({'tier': tier, 'width': width, 'cached_tokens': length, 'ms': ms,
                             'floor_ms': round(floor_ms, 4), 'ratio': round(ms / floor_ms, 3)})
    return rows


def weight_bytes(config: ModelConfig, tier: str) -> float:
    """Return the bytes of a tier's matrices that a step reads: all but the input embedding."""
    head = config.vocab_size * config.d_model
    layers = config.n_parameters - head * (1 if config.tie_embeddings else 2)
    return (layers * _BITS[tier] + head * max(8, _BITS[tier])) / 8
