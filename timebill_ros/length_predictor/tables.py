# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""All measurements of the length predictors, from the files that collecting and training left."""

from dataclasses import dataclass, replace
import time
from typing import Any, Callable, Dict, List, Sequence

import numpy as np
from numpy.typing import NDArray

from timebill_ros.length_predictor.collect import Lengths
from timebill_ros.length_predictor.data import Prompt
from timebill_ros.length_predictor.distribution import upper_edges
from timebill_ros.length_predictor.fit_head import HeadConfig
from timebill_ros.length_predictor.metrics import (
    evaluate_distribution,
    evaluate_points,
    MIN_ROWS_PER_SOURCE,
)
from timebill_ros.length_predictor.predictions import Predictions
from timebill_ros.length_predictor.predictor import length_features, Predictor
from timebill_ros.length_predictor.split import Split
from timebill_ros.length_predictor.states_file import StatesFile
from timebill_ros.length_predictor.train import (
    HeadTraining,
    held_out_rows,
    Rows,
    train_head,
    TrainedHead,
)

Table = List[Dict[str, Any]]
_FEW = 300              # labels of a new source
_FEW_TIMES = 3          # each counts so often beside the many of other sources


@dataclass
class Material:
    """What the tables are made from; rows are the prompts of the states file."""

    prompts: Sequence[Prompt]
    split: Split
    run: Lengths                        # what is measured against
    other_runs: List[Lengths]           # of the same target with other arithmetic
    states: StatesFile
    probe: Predictor                    # the shipped checkpoint
    predictions: List[Predictions]
    training: HeadTraining
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        """Put everything into the order of the states file's rows."""
        source = {p.prompt_id: p.source for p in self.prompts}
        ids = self.states.ids
        self.cap = int(self.run.header['cap'])
        self.lengths = np.array([self.run.rows[i]['n'] for i in ids])
        self.sources = np.array([source[i] for i in ids])
        self.held_out = held_out_rows(ids, self.split)
        self.truth = self.lengths[self.held_out]
        self._row = {prompt_id: row for row, prompt_id in enumerate(ids)}

    def rows(self, layer: int) -> Rows:
        """Return the training rows of one layer's states."""
        return Rows(self.states.at(layer), self.lengths[:, None], self.states.ids)

    def truth_of(self, said: Predictions) -> NDArray[np.int64]:
        """Return the lengths of the prompts that were predicted."""
        return self.lengths[[self._row[i] for i in said.ids]]

    def sources_of(self, said: Predictions) -> List[str]:
        """Return the sources of the prompts that were predicted."""
        return [str(self.sources[self._row[i]]) for i in said.ids]


def comparison(m: Material) -> Table:
    """Return all predictors side by side on the held-out prompts."""
    table: Table = []
    for number, other in enumerate(m.other_runs, start=2):
        ids = [i for i in m.states.ids if i in other.rows and m.split.place[i] == 'held-out']
        first = np.array([m.run.rows[i]['n'] for i in ids])
        again = np.array([other.rows[i]['n'] for i in ids], np.float64)
        table.append({
            'predictor': f'the target itself, run {number}', 'n': len(ids),
            'correlation': float(np.corrcoef(first, again)[0, 1]),
            'same_length': float((first == again).mean()),
            **evaluate_points(again, again, first)})
    pmf, milliseconds = _said_by_probe(m)
    table.append({
        'predictor': 'probe', 'n': len(pmf), 'ms': milliseconds,
        **evaluate_distribution(pmf, m.truth, list(m.sources[m.held_out]), m.training.width)})
    for said in m.predictions:
        name = said.kind + (f', {said.n_layers} layers' if said.n_layers else '')
        if said.probabilities is not None and said.calibration is not None:
            measured = evaluate_distribution(
                said.pmf(), m.truth_of(said), m.sources_of(said), said.calibration.buckets.width)
            table.append({'predictor': name, 'n': len(said.ids), **measured})
        for point, values in said.points.items():
            label = name if point == 'value' else f'{name}, {point}'
            table.append({'predictor': label, 'n': len(said.ids),
                          **evaluate_points(values, values, m.truth_of(said))})
    table.append(_prompt_length(m))
    trained = np.setdiff1d(np.arange(len(m.lengths)), m.held_out)
    median = np.full(len(m.truth), np.median(m.lengths[trained]))
    mean = np.full(len(m.truth), m.lengths[trained].mean())
    table.append({'predictor': 'median', 'n': len(m.truth),
                  **evaluate_points(median, mean, m.truth)})
    return table


def _said_by_probe(m: Material) -> 'tuple[NDArray[np.float64], float]':
    states, pmf, seconds = m.states.at(m.probe.state_layer), [], []
    for row in m.held_out:
        began_s = time.perf_counter()
        said = m.probe.predict([], states[row])
        seconds.append(time.perf_counter() - began_s)
        pmf.append(said.pmf)
    return np.stack(pmf), 1e3 * float(np.median(seconds))


def _prompt_length(m: Material) -> Dict[str, Any]:
    config = HeadTraining(m.training.width, 2, head=HeadConfig(dropout=0.0, input_noise=0.0))
    rows = Rows(length_features(m.states.n_prompt), m.lengths[:, None], m.states.ids)
    trained = train_head(rows, m.split, m.cap, config)
    return {'predictor': 'prompt length', 'n': len(m.truth), **evaluate_distribution(
        trained.pmf(rows.features[m.held_out]), m.truth, None, config.width)}


def bucket_widths(m: Material, widths: Sequence[int] = (16, 32, 64)) -> Table:
    """Return the probe's measures with buckets of other widths."""
    table = []
    for width in widths:
        trained = _train(m, m.rows(m.probe.state_layer), width=width)
        table.append({'B': width, **_measured(m, trained, m.held_out, width)})
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
        trained = train_head(rows, only_train, m.cap, _smaller(m.training, 2))
        pmfs.append(trained.pmf(states[validation]))
        table.append({'layer': name, **evaluate_distribution(
            pmfs[-1], m.lengths[validation], None, m.training.width)})
        m.say(f'layer {name}')
    table.append({'layer': 'all of these, averaged', **evaluate_distribution(
        np.mean(pmfs, 0), m.lengths[validation], None, m.training.width)})
    return table


def training_prompts(m: Material, shares: Sequence[float] = (0.125, 0.25, 0.5, 1.0)) -> Table:
    """Return the probe's measures when it is trained on a part of the prompts."""
    rows = m.rows(m.probe.state_layer)
    trained_on = np.setdiff1d(np.arange(len(m.lengths)), m.held_out)
    order = np.random.default_rng(0).permutation(trained_on)
    table = []
    for share in shares:
        part = order[:round(share * len(order))]
        trained = _train(m, rows.take(part))
        table.append({'prompts': len(part),
                      **_measured(m, trained, m.held_out, m.training.width)})
        m.say(f'{len(part)} prompts')
    return table


def shortened(m: Material) -> Table:
    """Return slm's errors against N_p, the tokens that the prompt was shortened to."""
    table = []
    for said in m.predictions:
        for n_p in sorted(said.shortened):
            measured = evaluate_distribution(said.pmf(n_p), m.truth_of(said))
            table.append({'predictor': said.kind, 'N_p': n_p, **measured})
    return table


def refinement(m: Material) -> Table:
    """Return the error of the remaining length against the tokens generated so far."""
    states = m.states.at(m.probe.state_layer)
    held_out = set(m.held_out.tolist())
    before = {row: m.probe.predict([], states[row]).pmf for row in m.held_out}
    table: Table = [_remaining(
        0, np.stack([before[r] for r in m.held_out]), None, m.truth)]
    for step in sorted(set(m.states.decode_step.tolist())):
        at = [j for j, row in enumerate(m.states.decode_row)
              if m.states.decode_step[j] == step and int(row) in held_out]
        rows = m.states.decode_row[at]
        known = np.stack([before[int(row)] for row in rows])
        known[:, :step] = 0.0           # it is still running
        known /= np.maximum(known.sum(1, keepdims=True), 1e-12)
        refined = np.stack([
            m.probe.refine(m.states.decode[j], step, states[row]).pmf
            for j, row in zip(at, rows)])
        table.append(_remaining(step, known, refined, m.lengths[rows]))
    return table


def _remaining(
    step: int, known: NDArray[np.float64], refined: 'NDArray[np.float64] | None',
    whole: NDArray[np.int64],
) -> Dict[str, Any]:
    prompt = evaluate_distribution(known, whole)
    row = {'generated': step, 'n': len(whole), 'mae_from_prompt': prompt['mae'],
           'rmse_from_prompt': prompt['rmse']}
    if refined is not None:
        measured = evaluate_distribution(refined, whole)
        row.update({'mae': measured['mae'], 'rmse': measured['rmse'], 'r2': measured['r2'],
                    'pit_below_0.95': measured['pit_below_0.95']})
    return row


def leave_one_out(m: Material) -> Table:
    """Return what a source costs that training has not seen, and what a few labels mend."""
    rows = m.rows(m.probe.state_layer)
    config = _smaller(m.training, 2)
    everything = _train(m, rows, config=config)
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
                ('without it', _train(m, rows.take(other), config=config)),
                (f'and {len(few)} labels', _train(m, rows.take(mended), config=config))):
            table.append({'source': source, 'trained on': name,
                          **_measured(m, trained, test, config.width)})
        m.say(f'without {source}')
    return table


def _train(
    m: Material, rows: Rows, width: int = 0, config: 'HeadTraining | None' = None
) -> TrainedHead:
    chosen = config or _smaller(m.training, m.training.n_folds)
    if width:
        chosen.width = width
    return train_head(rows, m.split, m.cap, chosen)


def _smaller(training: HeadTraining, n_folds: int) -> HeadTraining:
    return replace(training, n_folds=n_folds)


def _measured(
    m: Material, trained: TrainedHead, at: NDArray[np.int64], width: int
) -> Dict[str, Any]:
    pmf = trained.pmf(m.states.at(m.probe.state_layer)[at])
    measured = evaluate_distribution(pmf, m.lengths[at], None, width)
    measured['beyond_n_hat'] = float((m.lengths[at] > upper_edges(pmf, width)).mean())
    return measured
