# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables of predictors that are trained already, measured on the held-out prompts."""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timebill_ros.length_predictor.fit_head import HeadConfig
from timebill_ros.length_predictor.material import Material, Table
from timebill_ros.length_predictor.metrics import evaluate_distribution, evaluate_points
from timebill_ros.length_predictor.predictor import length_features
from timebill_ros.length_predictor.train import HeadTraining, Rows, train_head


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


def _prompt_length(m: Material) -> dict[str, Any]:
    config = HeadTraining(m.training.width, 2, head=HeadConfig(dropout=0.0, input_noise=0.0))
    rows = Rows(length_features(m.states.n_prompt), m.lengths[:, None], m.states.ids)
    trained = train_head(rows, m.split, m.cap, config)
    return {'predictor': 'prompt length', 'n': len(m.truth), **evaluate_distribution(
        trained.pmf(rows.features[m.held_out]), m.truth, None, config.width)}


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
) -> dict[str, Any]:
    prompt = evaluate_distribution(known, whole)
    row = {'generated': step, 'n': len(whole), 'mae_from_prompt': prompt['mae'],
           'rmse_from_prompt': prompt['rmse']}
    if refined is not None:
        measured = evaluate_distribution(refined, whole)
        row.update({'mae': measured['mae'], 'rmse': measured['rmse'], 'r2': measured['r2'],
                    'pit_below_0.95': measured['pit_below_0.95']})
    return row
