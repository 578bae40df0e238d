# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables of heads that are trained for them: what width, layer, prompts and sources do."""

from dataclasses import replace
from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray

from timebill_ros.length_predictor.distribution import upper_edges
from timebill_ros.length_predictor.material import Material, Table
from timebill_ros.length_predictor.metrics import evaluate_distribution, MIN_ROWS_PER_SOURCE
from timebill_ros.length_predictor.split import Split
from timebill_ros.length_predictor.train import HeadTraining, Rows, train_head, TrainedHead

_FEW = 300              # labels of a new source
_FEW_TIMES = 3          # each counts so often beside the many of other sources
_QUICK_FOLDS = 2        # members of a head where many heads are compared


def bucket_widths(m: Material, widths: Sequence[int] = (16, 32, 64)) -> Table:
    """Return the probe's measures with buckets of other widths; trained as the shipped one is."""
    table = []
    for width in widths:
        training = replace(m.training, width=width)
        trained = _train(m, m.rows(m.probe.state_layer), training, m.variations)
        table.append({'B': width, **_measured(m, trained, m.held_out)})
        m.say(f'B = {width}')
    return table


def layers(m: Material) -> Table:
    """Return what single layers say on the validation prompts: what the choice was made by."""
    validation = np.array(
        [row for row, i in enumerate(m.states.ids) if m.split.place[i] == 'validation'])
    table = []
    features = {str(layer): m.states.at(layer) for layer in m.states.layers}
    features[f'mean over the prompt, {m.states.decode_layer}'] = m.states.mean
    only_train = Split(
        {i: 'train' if place == 'train' else 'held-out' for i, place in m.split.place.items()},
        m.split.group)
    pmfs = []
    for name, states in features.items():
        rows = Rows(states, m.lengths[:, None], m.states.ids)
        trained = train_head(rows, only_train, m.cap, _quick(m))
        pmfs.append(trained.pmf(states[validation]))
        table.append({'layer': name, **evaluate_distribution(
            pmfs[-1], m.lengths[validation], None, m.training.width)})
        m.say(f'layer {name}')
    table.append({'layer': 'all of these, averaged', **evaluate_distribution(
        np.mean(pmfs, 0), m.lengths[validation], None, m.training.width)})
    return table


def training_prompts(m: Material, shares: Sequence[float] = (0.125, 0.25, 0.5, 1.0)) -> Table:
    """
    Return the probe's measures when it is trained on a part of the prompts, or on more.

    More are the sets of variations, one after the other; the last row is the shipped probe's
    recipe.
    """
    rows = m.rows(m.probe.state_layer)
    trained_on = np.setdiff1d(np.arange(len(m.lengths)), m.held_out)
    order = np.random.default_rng(0).permutation(trained_on)
    parts = [(order[:round(share * len(order))], 0) for share in shares]
    parts += [(order, 1 + number) for number in range(len(m.variations))]
    table = []
    for part, n_sets in parts:
        more = m.variations[:n_sets]
        trained = _train(m, rows.take(part), m.training, more)
        n_varied = sum(len(each.prompt_ids) for each in more)
        table.append({'prompts': len(part), 'variations': n_varied,
                      **_measured(m, trained, m.held_out)})
        m.say(f'{len(part)} prompts, {n_varied} variations')
    return table


def leave_one_out(m: Material) -> Table:
    """Return what a source costs that training has not seen, and what a few labels mend."""
    rows = m.rows(m.probe.state_layer)
    everything = _train(m, rows, _quick(m))
    table = []
    for source in sorted(set(m.sources.tolist())):
        own = np.flatnonzero(m.sources == source)
        test = np.intersect1d(own, m.held_out)
        if len(test) < MIN_ROWS_PER_SOURCE / 5:
            continue
        other = np.flatnonzero(m.sources != source)
        few = np.random.default_rng(0).permutation(np.setdiff1d(own, test))[:_FEW]
        mended = np.concatenate([other] + [few] * _FEW_TIMES)
        for name, trained in (
                ('all sources', everything),
                ('without it', _train(m, rows.take(other), _quick(m))),
                (f'and {len(few)} labels', _train(m, rows.take(mended), _quick(m)))):
            table.append({'source': source, 'trained on': name, **_measured(m, trained, test)})
        m.say(f'without {source}')
    return table


def _train(
    m: Material, rows: Rows, training: HeadTraining, more: Sequence[Rows] = ()
) -> TrainedHead:
    return train_head(rows, m.split, m.cap, training, more=more)


def _quick(m: Material) -> HeadTraining:
    return replace(m.training, n_folds=_QUICK_FOLDS)


def _measured(m: Material, trained: TrainedHead, at: NDArray[np.int64]) -> dict[str, Any]:
    width = trained.calibration.buckets.width
    pmf = trained.pmf(m.states.at(m.probe.state_layer)[at])
    measured = evaluate_distribution(pmf, m.lengths[at], None, width)
    measured['beyond_n_hat'] = float((m.lengths[at] > upper_edges(pmf, width)).mean())
    return measured
