# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill predictor train``: from collected lengths (and states) to a checkpoint."""

import argparse
from typing import Any

from timebill_ros.length_predictor import command_inputs as inputs
from timebill_ros.length_predictor import train_classifier as training
from timebill_ros.length_predictor.checkpoint import save_checkpoint
from timebill_ros.length_predictor.collect import Lengths
from timebill_ros.length_predictor.data import Prompt, read_prompts
from timebill_ros.length_predictor.fit import FitConfig
from timebill_ros.length_predictor.metrics import evaluate_distribution, evaluate_points
from timebill_ros.length_predictor.predictions import Predictions
from timebill_ros.length_predictor.settings import Settings
from timebill_ros.length_predictor.split import Split, split_prompts
from timebill_ros.length_predictor.train_head_command import train_head_kind

_COMPARED = ('regression', 'proxy', 's3')       # they leave predictions, no checkpoint


def train(arguments: argparse.Namespace, settings: Settings) -> dict[str, Any]:
    """Train one predictor, write its checkpoint and return its measures."""
    if arguments.out is None and arguments.kind not in _COMPARED:
        raise ValueError('say with --out where the checkpoint is to go')
    prompts = read_prompts(arguments.prompts)
    split = split_prompts(prompts)
    runs = inputs.read_runs(arguments.lengths)
    of_kind = _train_classifier if arguments.kind in ('slm', *_COMPARED) else train_head_kind
    return of_kind(arguments, settings, prompts, split, runs)


def _train_classifier(
    arguments: argparse.Namespace,
    settings: Settings,
    prompts: list[Prompt],
    split: Split,
    runs: list[Lengths],
) -> dict[str, Any]:
    """Train "slm", "regression", "proxy" or "s3"."""
    kind = arguments.kind
    config = _classifier_training(kind, settings)
    kept = [p for p in prompts if all(p.prompt_id in run.rows for run in runs)]
    lengths = inputs.lengths_of([p.prompt_id for p in kept], runs)
    data = training.Data(kept, lengths, int(runs[0].header['cap']), split)
    if kind == 'slm':
        said, metrics = _train_slm(arguments, data, config, runs)
    else:
        said = (
            training.train_regression(inputs.target_of(arguments), data, config, inputs.say)
            if kind == 'regression' else
            training.train_baseline(kind, inputs.device_of(arguments), data, config, inputs.say))
        truth = lengths[data.rows('held-out'), 0]
        metrics = {n: evaluate_points(v, v, truth) for n, v in said.points.items()}
    if arguments.predictions is not None:
        said.save(arguments.predictions)
    return metrics


def _classifier_training(kind: str, settings: Settings) -> training.ClassifierTraining:
    chosen = settings['baselines' if kind in ('proxy', 's3') else 'slm']
    if kind == 'regression':
        chosen = {**chosen, **settings['regression']}
    names = ('n_layers', 'rank', 'max_prompt_tokens', 'encoder')
    fit_names = ('epochs', 'batch_rows', 'learning_rate')
    return training.ClassifierTraining(
        width=settings['train']['width'],
        fit=FitConfig(
            seed=settings['train']['seed'],
            **{name: chosen[name] for name in fit_names if name in chosen}),
        **{name: chosen[name] for name in names if name in chosen},
    )


def _train_slm(
    arguments: argparse.Namespace,
    data: training.Data,
    config: training.ClassifierTraining,
    runs: list[Lengths],
) -> tuple[Predictions, dict[str, Any]]:
    said, tensors = training.train_slm(inputs.target_of(arguments), data, config, inputs.say)
    card = inputs.make_card(arguments, runs, config.width, 'slm')
    card.n_layers, card.rank = config.n_layers, config.rank
    card.max_prompt_tokens = config.max_prompt_tokens
    card.data['prompts'] = len(data.prompts)
    held_out = data.rows('held-out')
    card.metrics['held_out'] = evaluate_distribution(
        said.pmf(), data.lengths[held_out, 0], [data.prompts[i].source for i in held_out],
        card.width)
    save_checkpoint(arguments.out, card, tensors)
    return said, card.metrics
