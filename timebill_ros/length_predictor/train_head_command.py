# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill predictor train probe | length | median``: predictors that are heads alone."""

import argparse
from typing import Any

import numpy as np

from timebill_ros.length_predictor import command_inputs as inputs
from timebill_ros.length_predictor.checkpoint import Card, save_checkpoint
from timebill_ros.length_predictor.collect import Lengths
from timebill_ros.length_predictor.data import Prompt
from timebill_ros.length_predictor.predictor import (
    head_tensors,
    length_features,
    refine_features,
)
from timebill_ros.length_predictor.settings import Settings
from timebill_ros.length_predictor.split import Split
from timebill_ros.length_predictor.states_file import StatesFile
from timebill_ros.length_predictor.train import (
    HeadTraining,
    held_out_rows,
    label_noise,
    measure,
    Rows,
    train_head,
)


def train_head_kind(
    arguments: argparse.Namespace,
    settings: Settings,
    prompts: list[Prompt],
    split: Split,
    runs: list[Lengths],
) -> dict[str, Any]:
    """Train the predictor, write its checkpoint and return its measures."""
    config = inputs.head_training(settings['train'])
    card = inputs.make_card(arguments, runs, config.width, arguments.kind)
    tensors: dict[str, Any] = {}
    more: list[Rows] = []
    if arguments.kind == 'probe':
        file = inputs.read_states(arguments, runs[0])
        varied = inputs.read_variations(arguments, file, runs[0])
        card.state_layer, card.d_model = file.decode_layer, file.prompt.shape[2]
        lengths = inputs.lengths_of(file.ids, runs)
        rows = Rows(file.at(file.decode_layer), lengths, file.ids)
        more = inputs.variation_rows(varied, file.decode_layer)
        if len(file.decode):
            again = inputs.head_training({**settings['train'], **settings['refine']})
            tensors = _train_refinement(card, file, runs[0], varied, split, again)
    else:
        rows = _fixed_rows(arguments.kind, prompts, runs)
        config.head.input_noise, config.head.dropout = 0.0, 0.0
    trained = train_head(rows, split, card.cap, config, inputs.say, more)
    sources = {p.prompt_id: p.source for p in prompts}
    card.metrics['held_out'] = measure(trained, rows, split, sources)
    card.metrics['ratios'] = trained.ratios
    if rows.lengths.shape[1] > 1:
        held_out = rows.take(held_out_rows(rows.prompt_ids, split))
        card.metrics['label_noise'] = dict(
            zip(('correlation', 'mae'), label_noise(held_out.lengths))
        )
    tensors.update(head_tensors('', trained.head, trained.calibration))
    card.data['prompts'] = len(rows.prompt_ids)
    card.data['variations'] = sum(len(each.prompt_ids) for each in more)
    save_checkpoint(arguments.out, card, tensors)
    return card.metrics


def _fixed_rows(kind: str, prompts: list[Prompt], runs: list[Lengths]) -> Rows:
    """Return what "length" and "median" learn from: the prompts' lengths, or nothing."""
    ids = [p.prompt_id for p in prompts if all(p.prompt_id in run.rows for run in runs)]
    n_prompt = np.array([runs[0].rows[i]['n_prompt'] for i in ids])
    n_prompt = n_prompt if kind == 'length' else np.ones_like(n_prompt)
    return Rows(length_features(n_prompt), inputs.lengths_of(ids, runs), ids)


def _train_refinement(
    card: Card,
    file: StatesFile,
    run: Lengths,
    varied: list[tuple[StatesFile, Lengths]],
    split: Split,
    config: HeadTraining,
) -> dict[str, Any]:
    """Train the head on states of decode steps; return its tensors and note it on the card."""
    rows = remaining_rows(file, run)
    more = [remaining_rows(states, other) for states, other in varied if len(states.decode)]
    trained = train_head(rows, split, card.cap, config, inputs.say, more)
    card.refine_layer = file.decode_layer
    card.metrics['refined'] = measure(trained, rows, split)
    return head_tensors('refine.', trained.head, trained.calibration)


def remaining_rows(file: StatesFile, run: Lengths) -> Rows:
    """Return the rows that refinement learns from; the cap stays the cap."""
    cap = int(run.header['cap'])
    ids = [file.ids[row] for row in file.decode_row]
    whole = np.array([run.rows[i]['n'] for i in ids])
    # an answer that reaches the cap keeps the cap's class, whatever remains of it
    remaining = np.where(whole >= cap, cap, whole - file.decode_step)
    return Rows(
        refine_features(
            file.decode, file.decode_step, file.at(file.decode_layer)[file.decode_row],
        ), remaining[:, None], ids
    )
