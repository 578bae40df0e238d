# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
``timebill bench cpu``: a GGUF model on this CPU against llama.cpp, the same file and threads.

Both are loaded at once and measured in turn, so that each round compares neighbours in time; the
ratios are medians over rounds of the ratio within a round.
"""

import argparse
from contextlib import nullcontext
from dataclasses import replace
import os
from pathlib import Path
import statistics
import sys
import time

import torch

from timebill_ros.cli.profile_quality import CALIBRATION
from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cpu.steps import INT16
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.linear import linear
from timebill_ros.engine.loading import load_model
from timebill_ros.engine.quality_report import read_prompts
from timebill_ros.engine.source import EMBEDDED, embedded_file
from timebill_ros.engine.threads import choose_threads
from timebill_ros.executor.messages import Load
from timebill_ros.experiments import bench_evict, engine_bench as bench
from timebill_ros.experiments.llama_cpp_peer import LlamaCpp, prompt, REQUIREMENT, version
from timebill_ros.experiments.report_file import deliver
from timebill_ros.experiments.tier_text import read_text, same_answers
from timebill_ros.paths import config_file
from timebill_ros.query import Sampling

CACHED = (64, 512, 4096)
PROMPTS = (512, 4096)
WORTH = (2048, 7680)
PEER = 'llama.cpp'
_GEMM = 1536            # rows and columns of the product that is the ceiling
_ROOM = 256              # tokens beyond the longest prompt
_LONG = 2048             # prompts from here on are measured in fewer rounds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.epilog = ('Runs in the interpreter of the engine. The peer is optional: '
                     f'pip install --no-deps {REQUIREMENT}')
    parser.add_argument('--model', default=EMBEDDED, help='"embedded" or a GGUF file')
    parser.add_argument('--threads', type=int, nargs='+', default=[0], metavar='N',
                        help='numbers of threads to measure with, one after the other; 0 = all')
    parser.add_argument('--tiers', nargs='+', default=['fp32', 'int8', 'int4'])
    parser.add_argument('--cached', type=int, nargs='+', default=CACHED, metavar='N')
    parser.add_argument('--prompts', type=int, nargs='*', default=PROMPTS, metavar='N')
    parser.add_argument('--worth', type=int, nargs='*', default=WORTH, metavar='N',
                        help='cached tokens at which evictions and tiers are compared')
    parser.add_argument('--answer', type=int, default=256, help='tokens of the answer there')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--text', type=Path, help='a text to be foretold by every tier as well')
    parser.add_argument('--answers', type=int, default=48,
                        help='tokens of answers that are compared over what prefills compute in')
    parser.add_argument('--steps', type=int, default=32, help='decode steps per round')


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print tables or one JSON object."""
    report: bench.Row = {}
    for index, asked in enumerate(arguments.threads):
        threads = choose_threads(asked)
        engines, found = measure(arguments, threads)
        if not index:
            report = bench.head(engines['fp32'], 'cpu')
            report.update(
                peer=version(), load_average=os.getloadavg()[0], answer=arguments.answer,
                command=' '.join(['timebill bench cpu', *sys.argv[sys.argv.index('cpu') + 1:]]))
        for name, of_name in found.items():
            report.setdefault(name, []).extend({'threads': threads, **row} for row in of_name)
    if arguments.answers:
        prompts = read_prompts(config_file(CALIBRATION))
        report['answers'] = same_answers(
            engines, [each.text for each in prompts], arguments.answers)
    if arguments.text:
        report['text'] = read_text(
            engines['fp32'], arguments.text.read_text(), engines['fp32'].info.max_context)
    deliver(report, arguments, bench.text)
    return 0


def measure(arguments: argparse.Namespace,
            threads: int) -> tuple[dict[str, Engine], dict[str, list[bench.Row]]]:
    """Return engines by what their prefill computes in, and rows of what was measured."""
    longest = max([*arguments.cached, *arguments.prompts,
                   *(length + arguments.answer for length in arguments.worth)]) + _ROOM
    file = embedded_file() if arguments.model == EMBEDDED else Path(arguments.model)
    load = Load(arguments.model, 'cpu', 'float32', threads, longest, tiers=arguments.tiers,
                max_batch=1, predictor='')
    model = load_model(load, lambda what, done: None)
    engine = Engine(model, load)
    engines, found = {'fp32': engine}, {}
    for tier in (INT16, *engine.info.tiers[1:]):
        other = Engine.load(replace(load, prefill_tier=tier))
        if other.info.device != engine.info.device:     # it can read prompts so, and says so
            engines[tier] = other
    with LlamaCpp(file, threads, longest) if version() else nullcontext() as peer:
        found['decode'] = [row for length in arguments.cached
                           for row in decode(engine, peer, length, arguments)]
        ceiling = gemm_gflops(threads)
        found['prefill'] = [
            {**row, 'gflops': round(product_gflop(model.config) * length / row['ms'] * 1e3, 1),
             'gemm_gflops': ceiling}
            for length in arguments.prompts
            for row in prefill(engines, peer, length, arguments.rounds)]
    if arguments.worth:
        found['worth'] = bench_evict.worth(
            engine, model.config, arguments.worth, arguments.answer, arguments.rounds)
    return engines, found


def decode(engine: Engine, peer: LlamaCpp | None, n_cached: int,
           arguments: argparse.Namespace) -> list[bench.Row]:
    """Return a row per tier: milliseconds of a step behind ``n_cached`` tokens, and the peer's."""
    names = [*engine.info.tiers, *([PEER] if peer else [])]
    times: dict[str, list[float]] = {name: [] for name in names}
    for index in range(arguments.rounds + 1):
        for name in names:
            took_ms = peer.step_ms(n_cached, arguments.steps) if name == PEER and peer else (
                step_ms(engine, name, n_cached, arguments.steps))
            if index:                       # the first round warms up
                times[name].append(took_ms)
    return rows(times, {'cached_tokens': n_cached})


def prefill(engines: dict[str, Engine], peer: LlamaCpp | None, n_tokens: int,
            rounds: int) -> list[bench.Row]:
    """Return a row per precision of the prefill: milliseconds of a prompt, and the peer's."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds if n_tokens < _LONG else max(2, rounds // 2)):
        for name, engine in engines.items():
            times[name].append(prefill_ms(engine, n_tokens))
        if peer:
            times.setdefault(PEER, []).append(peer.prefill_ms(n_tokens))
    return rows(times, {'prompt_tokens': n_tokens})


def product_gflop(config: ModelConfig) -> float:
    """Return what the matrix products of a prompt's token take, 10^9 operations."""
    width, kv_width = (heads * config.head_dim for heads in (config.n_heads, config.n_kv_heads))
    return 2e-9 * config.n_layers * config.d_model * (2 * width + 2 * kv_width + 3 * config.d_ff)


def gemm_gflops(threads: int) -> float:
    """Return the rate of a large float32 product through oneDNN: what is left to be gained."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, weight = torch.randn(2, _GEMM, _GEMM)
        best_s = min(bench.time_s(lambda: linear(x, weight), x.device) for _ in range(8))
    finally:
        torch.set_num_threads(before)
    return round(2e-9 * _GEMM ** 3 / best_s, 1)


def rows(times: dict[str, list[float]], of: bench.Row) -> list[bench.Row]:
    """Return the medians per name, and how many times as fast as the peer each was, by round."""
    peer_ms, out = times.pop(PEER, None), []
    for name, mine_ms in times.items():
        row = {**of, 'tier': name, 'ms': round(statistics.median(mine_ms), 3),
               'best_ms': round(min(mine_ms), 3)}
        if peer_ms:
            ratios = [theirs / ours for theirs, ours in zip(peer_ms, mine_ms)]
            row.update(peer_ms=round(statistics.median(peer_ms), 3),
                       peer_best_ms=round(min(peer_ms), 3),
                       times_as_fast=round(statistics.median(ratios), 2))
        out.append(row)
    return out


def step_ms(engine: Engine, tier: str, n_cached: int, steps: int) -> float:
    """Return the mean time of a step, greedy, the choice of the token included."""
    sequence = engine.open_sequence(prompt(n_cached), n_cached + steps + 2, Sampling())
    try:
        engine.assume_prefilled(sequence, n_cached)
        sequence.tokens.append(sequence.prompt[-1])
        began_s = time.perf_counter()
        for _ in range(steps):
            engine.decode_step([sequence], tier)
        return 1e3 * (time.perf_counter() - began_s) / steps
    finally:
        engine.close(sequence)


def prefill_ms(engine: Engine, n_tokens: int) -> float:
    """Return the time from the prompt to the answer's first token."""
    sequence = engine.open_sequence(prompt(n_tokens), n_tokens + 1, Sampling())
    try:
        began_s = time.perf_counter()
        while not engine.prefill_chunk(sequence):
            pass
        engine.next_token(sequence)
        return 1e3 * (time.perf_counter() - began_s)
    finally:
        engine.close(sequence)
