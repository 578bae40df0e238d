# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
``timebill bench cpu``: a GGUF model on this CPU against llama.cpp, the same file and threads.

Both are loaded at once and measured in turn, so that each round compares neighbours in time; the
ratios are medians over rounds of the ratio within a round.
"""

import argparse
from contextlib import nullcontext
import os
from pathlib import Path
import statistics
import time

from timebill_ros.engine.engine import Engine
from timebill_ros.engine.source import EMBEDDED, embedded_file
from timebill_ros.engine.threads import choose_threads
from timebill_ros.executor.messages import Load
from timebill_ros.experiments import engine_bench as bench
from timebill_ros.experiments.llama_cpp_peer import LlamaCpp, prompt, REQUIREMENT, version
from timebill_ros.experiments.tier_text import read_text
from timebill_ros.query import Sampling

CACHED = (64, 512, 4096)
PROMPTS = (512, 4096)
PEER = 'llama.cpp'
_ROOM = 256              # tokens beyond the longest prompt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.epilog = ('Runs in the interpreter of the engine. The peer is optional: '
                     f'pip install --no-deps {REQUIREMENT}')
    parser.add_argument('--model', default=EMBEDDED, help='"embedded" or a GGUF file')
    parser.add_argument('--threads', type=int, default=0, help='0 = all cores')
    parser.add_argument('--tiers', nargs='+', default=['fp32', 'int8', 'int4'])
    parser.add_argument('--cached', type=int, nargs='+', default=CACHED, metavar='N')
    parser.add_argument('--prompts', type=int, nargs='*', default=PROMPTS, metavar='N')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--text', type=Path, help='a text to be foretold by every tier as well')
    parser.add_argument('--steps', type=int, default=32, help='decode steps per round')


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print tables or one JSON object."""
    threads = choose_threads(arguments.threads)
    longest = max([*arguments.cached, *arguments.prompts]) + _ROOM
    file = embedded_file() if arguments.model == EMBEDDED else Path(arguments.model)
    engine = Engine.load(Load(arguments.model, 'cpu', 'float32', threads, longest,
                              tiers=arguments.tiers))
    report = bench.head(engine, 'cpu')
    report.update(threads=threads, peer=version(), load_average=os.getloadavg()[0])
    with LlamaCpp(file, threads, longest) if report['peer'] else nullcontext() as peer:
        report['decode'] = [row for length in arguments.cached
                            for row in decode(engine, peer, length, arguments)]
        report['prefill'] = [row for length in arguments.prompts
                             for row in prefill(engine, peer, length, arguments.rounds)]
    if arguments.text:
        report['text'] = read_text(engine, arguments.text.read_text(), longest)
    return bench.show(report, arguments.json)


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


def prefill(engine: Engine, peer: LlamaCpp | None, n_tokens: int, rounds: int) -> list[bench.Row]:
    """Return one row: milliseconds of a prompt of ``n_tokens``, and the peer's."""
    times: dict[str, list[float]] = {'prefill': []}
    for _ in range(rounds):
        times['prefill'].append(prefill_ms(engine, n_tokens))
        if peer:
            times.setdefault(PEER, []).append(peer.prefill_ms(n_tokens))
    return rows(times, {'prompt_tokens': n_tokens})


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
