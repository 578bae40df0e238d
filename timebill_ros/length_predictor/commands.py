# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The steps of ``timebill predictor``, as functions of its arguments and settings."""

import argparse
import time
from typing import Any

import numpy as np

from timebill_ros.length_predictor import command_inputs as inputs
from timebill_ros.length_predictor.checkpoint import load_checkpoint
from timebill_ros.length_predictor.collect import collect as collect_lengths
from timebill_ros.length_predictor.collect import CollectConfig, read_lengths
from timebill_ros.length_predictor.data import read_prompts, write_prompts
from timebill_ros.length_predictor.metrics import evaluate_distribution
from timebill_ros.length_predictor.predictor import load_predictor
from timebill_ros.length_predictor.settings import Settings
from timebill_ros.length_predictor.split import split_prompts
from timebill_ros.length_predictor.states_file import collect_states
from timebill_ros.length_predictor.vary import vary as vary_prompts
from timebill_ros.query import Sampling

Result = dict[str, Any]     # to be printed


def collect(arguments: argparse.Namespace, settings: Settings) -> Result:
    """Collect lengths into a file."""
    chosen = settings['collect']
    penalty = arguments.repetition_penalty or chosen['repetition_penalty']
    config = CollectConfig(
        cap=chosen['cap'],
        sampling=Sampling(temperature=chosen['temperature'], repetition_penalty=penalty),
        max_rows=arguments.max_rows or chosen['max_rows'],
        max_batch_tokens=chosen['max_batch_tokens'],
        keep_tokens=arguments.keep_tokens,
    )
    added = collect_lengths(
        inputs.target_of(arguments), read_prompts(arguments.prompts), arguments.out, config,
        inputs.progress)
    return {'added': added, 'file': str(arguments.out)}


def vary(arguments: argparse.Namespace, settings: Settings) -> Result:
    """Write variations of the prompts that are not held out."""
    prompts = read_prompts(arguments.prompts)
    made = vary_prompts(prompts, split_prompts(prompts), arguments.name)
    write_prompts(arguments.out, made)
    return {'prompts': len(made), 'file': str(arguments.out)}


def states(arguments: argparse.Namespace, settings: Settings) -> Result:
    """Read the states that a probe is trained on."""
    chosen = settings['states']
    target = inputs.target_of(arguments)
    lengths = read_lengths(arguments.lengths, target.key) if arguments.lengths else None
    decode_layer = chosen['layer']
    file = collect_states(
        target,
        read_prompts(arguments.prompts),
        lengths,
        sorted({*chosen['layers'], decode_layer}),
        decode_layer,
        chosen['steps'] if lengths else [],
        inputs.progress,
    )
    file.save(arguments.out)
    return {'prompts': len(file.ids), 'decode_rows': len(file.decode), 'file': str(arguments.out)}


def train(arguments: argparse.Namespace, settings: Settings) -> Result:
    """Train one predictor and write its checkpoint."""
    from timebill_ros.length_predictor.train_command import train as train_predictor

    return train_predictor(arguments, settings)


def evaluate(arguments: argparse.Namespace, settings: Settings) -> Result:
    """Measure a checkpoint on the held-out prompts, one prediction at a time."""
    card, _ = load_checkpoint(arguments.checkpoint)
    prompts = read_prompts(arguments.prompts)
    split = split_prompts(prompts)
    runs = inputs.read_runs(arguments.lengths)
    directory = inputs.directory_of(arguments) if card.kind == 'slm' else None
    predictor = load_predictor(
        arguments.checkpoint,
        runs[0].header['target'],
        card.vocab_size,
        card.d_model,
        directory,
        inputs.device_of(arguments),
    )
    inputs.check_cap(card, arguments, runs[0])
    file = inputs.read_states(arguments, runs[0]) if predictor.state_layer else None
    states = file.at(predictor.state_layer) if file else None
    row_of = {prompt_id: row for row, prompt_id in enumerate(file.ids)} if file else {}
    target = inputs.target_of(arguments) if card.kind == 'slm' else None
    kept = [
        p
        for p in prompts
        if split.place[p.prompt_id] == 'held-out'
        and p.prompt_id in runs[0].rows
        and (file is None or p.prompt_id in row_of)
    ]
    pmf, seconds = [], []
    for prompt in kept:
        n_prompt = runs[0].rows[prompt.prompt_id]['n_prompt']
        # without a tokenizer at hand only the number of prompt tokens is known, and needed
        ids = target.prompt_ids([prompt.text])[0] if target else [0] * n_prompt
        state = states[row_of[prompt.prompt_id]] if states is not None else None
        start = time.perf_counter()
        distribution = predictor.predict(ids, state)
        seconds.append(time.perf_counter() - start)
        pmf.append(distribution.pmf)
    lengths = np.array([runs[0].rows[p.prompt_id]['n'] for p in kept])
    result = evaluate_distribution(np.stack(pmf), lengths, [p.source for p in kept], card.width)
    result['ms_per_prediction'] = 1e3 * float(np.median(seconds))
    return result


def tables(arguments: argparse.Namespace, settings: Settings) -> Result:
    """Make every table of the documentation."""
    from timebill_ros.length_predictor.tables_command import make_tables

    return make_tables(
        arguments, inputs.head_training(settings['train']), inputs.command_line(), inputs.say)
