# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill bench prefill``: prompts of several lengths, against transformers in the same run."""

import argparse
from collections.abc import Callable
import random
import time

import torch

from timebill_ros.engine.engine import Engine
from timebill_ros.engine.loading import LoadedModel
from timebill_ros.experiments import engine_bench as bench
from timebill_ros.experiments.engine_bench import add_arguments
from timebill_ros.experiments.report_file import deliver

__all__ = ['add_arguments', 'run']

LENGTHS = (64, 512, 2048, 8192, 16384, 32768)


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print a table or one JSON object."""
    engine, model = bench.open_engine(arguments)
    report = bench.head(engine, 'prefill')
    report['rows'] = measure(engine, model, bench.lengths(arguments, engine, LENGTHS),
                             arguments.repeats)
    deliver(report, arguments, bench.text)
    return 0


def measure(engine: Engine, model: LoadedModel, lengths: list[int],
            repeats: int) -> list[bench.Row]:
    """Return a row per length: both taken in turns, and our longest uninterrupted call."""
    theirs = peer(model)
    rows = []
    for length in lengths:
        rng = random.Random(length)
        ids = [rng.randrange(model.config.vocab_size) for _ in range(length)]
        tensor = torch.tensor([ids], device=model.device)
        ours_s, theirs_s, calls_s = [], [], []
        for _ in range(repeats + 1):
            calls_s = prefill_s(engine, ids)
            ours_s.append(sum(calls_s))
            theirs_s.append(bench.time_s(lambda: theirs(tensor), model.device))
        rows.append({
            'tokens': length, 'ms': bench.median_ms(ours_s[1:]),
            'transformers_ms': bench.median_ms(theirs_s[1:]),
            'ratio': round(bench.median_ms(ours_s[1:]) / bench.median_ms(theirs_s[1:]), 3),
            'longest_call_ms': round(1e3 * max(calls_s), 2)})
    return rows


def prefill_s(engine: Engine, ids: list[int]) -> list[float]:
    """Return the time of each call that a prompt takes, the first token's choice in the last."""
    seq = engine.open_sequence(ids, len(ids) + 2)
    times, done = [], False
    while not done:
        began_s = time.perf_counter()
        done = engine.prefill_chunk(seq)
        if done:
            engine.next_token(seq)
        times.append(time.perf_counter() - began_s)
    engine.close(seq)
    return times


def peer(model: LoadedModel) -> Callable[[torch.Tensor], int]:
    """Return transformers' model of the same shape: ids [1, N] to the first token, cache kept."""
    from transformers import AutoConfig, AutoModelForCausalLM
    options = {'dtype': model.dtype, 'attn_implementation': 'sdpa'}
    if any(model.source.directory.glob('*.safetensors')):
        theirs = AutoModelForCausalLM.from_pretrained(
            model.source.directory, **options).to(model.device)
    else:
        config = AutoConfig.from_pretrained(model.source.directory)
        with model.device:
            theirs = AutoModelForCausalLM.from_config(config, **options)
    theirs.eval()

    @torch.inference_mode()
    def prefill(ids: torch.Tensor) -> int:
        return int(theirs(ids, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())

    return prefill
