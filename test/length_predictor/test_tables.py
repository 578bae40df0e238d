# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Baselines, stored predictions, and the one command that makes all tables."""

import argparse
import gzip
import json

import numpy as np
import pytest

from timebill_ros.length_predictor import baselines
from timebill_ros.length_predictor.buckets import Buckets
from timebill_ros.length_predictor.checkpoint import Card, save_checkpoint
from timebill_ros.length_predictor.distribution import Calibration, within_classes
from timebill_ros.length_predictor.fit_head import HeadConfig
from timebill_ros.length_predictor.predictions import Predictions
from timebill_ros.length_predictor.predictor import head_tensors, refine_features
from timebill_ros.length_predictor.real_lengths import real_length_table, TARGETS
from timebill_ros.length_predictor.split import Split, split_prompts
from timebill_ros.length_predictor.states_file import StatesFile
from timebill_ros.length_predictor.tables_command import make_tables
from timebill_ros.length_predictor.train import HeadTraining, Rows, train_head

CAP, D, LAYER = 64, 6, 2
QUICK = HeadTraining(width=8, n_folds=2, head=HeadConfig(
    hidden=16, epochs=5, dropout=0.0, input_noise=0.0, batch_rows=32, learning_rate=3e-2))


def test_baselines_have_the_published_classes():
    lengths = np.arange(1, 101)
    proxy, s3 = (baselines.classes(kind, lengths, 100) for kind in ('proxy', 's3'))
    assert len(proxy.values) == 5 and len(s3.values) == 10
    assert np.bincount(proxy.label(lengths)).tolist() == [25, 25, 25, 24, 1]
    assert np.bincount(s3.label(lengths)).tolist() == [10] * 10
    assert s3.values.tolist() == [5.5 + 10 * i for i in range(10)]
    said = proxy.points(np.array([[0.6, 0.4, 0, 0, 0]]))
    assert said['likeliest'][0] == proxy.values[0]
    assert said['expected'][0] == pytest.approx(0.6 * proxy.values[0] + 0.4 * proxy.values[1])


def test_predictions_come_back_from_their_file(tmp_path):
    buckets = Buckets(8, CAP)
    probabilities = np.random.default_rng(0).dirichlet(np.ones(buckets.n_classes), 5)
    calibration = Calibration(buckets, within_classes(buckets, [3, 9]), np.linspace(0, 1, 11))
    said = Predictions('slm', list('abcde'), 16, {'value': np.arange(5.0)}, probabilities,
                       calibration, {16: probabilities[::-1].copy()})
    said.save(tmp_path / 'x.npz')
    back = Predictions.load(tmp_path / 'x.npz')
    assert (back.kind, back.ids, back.n_layers) == ('slm', list('abcde'), 16)
    np.testing.assert_allclose(back.pmf(), said.pmf(), atol=1e-3)
    np.testing.assert_allclose(back.pmf(16), said.pmf(16), atol=1e-3)
    assert back.points['value'].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match='are points'):
        Predictions('s3', ['a']).pmf()


def test_real_lengths_are_predicted_out_of_fold():
    """States that say the length order it well; another target's lengths stand beside it."""
    rng = np.random.default_rng(1)
    states = rng.normal(size=(120, 1, D)).astype(np.float32)
    log = 4 + states[:, 0, 0] + 0.1 * rng.normal(size=120)
    lengths = {name: [float(n) for n in np.exp(log + 0.05 * i)] for i, name in enumerate(TARGETS)}
    lengths[TARGETS[0]][3] = None
    file = StatesFile('t', [LAYER], LAYER, [str(i) for i in range(120)], np.ones(120, np.int64),
                      states, states[:, 0], np.zeros(0, np.int64), np.zeros(0, np.int64),
                      np.zeros((0, D), np.float32))
    table = real_length_table({'prompt_tokens': [9] * 120, 'lengths': lengths}, file)
    first = [row for row in table if row['target'] == TARGETS[0]]
    by_state = next(row for row in first if row['features'] == f'layer {LAYER}')
    assert by_state['n'] == 119 and by_state['spearman'] > 0.8
    assert next(row for row in first if 'the answer of' in row['features'])['spearman'] > 0.99


def _file(name, header, rows):
    with gzip.open(name, 'wt') as file:
        file.writelines(json.dumps(row) + '\n' for row in ([header] if header else []) + rows)
    return name


def test_one_command_makes_every_table(tmp_path):
    rng = np.random.default_rng(2)
    count = 700
    ids = [f'{"ab"[i % 2]}/{i}' for i in range(count)]
    states = rng.normal(size=(count, 2, D)).astype(np.float32)
    lengths = np.clip(25 + 12 * states[:, 1, 0] + rng.normal(0, 3, count), 1, CAP).astype(int)
    steps = [(row, s) for row in range(count) for s in (4, 16) if lengths[row] > s]
    row_of, step_of = (np.array(column) for column in zip(*steps))
    file = StatesFile('t', [1, LAYER], LAYER, ids, np.full(count, 9), states, states[:, 1],
                      row_of, step_of, states[row_of, 1])
    file.save(tmp_path / 'states.npz')
    prompts = _file(tmp_path / 'p.jsonl.gz', None, [
        {'id': i, 'prompt': f'prompt of number {i}'} for i in ids])
    run = _file(tmp_path / 'run.jsonl.gz', {'target': 't', 'cap': CAP}, [
        {'id': i, 'n_prompt': 9, 'n': int(n)} for i, n in zip(ids, lengths)])
    from timebill_ros.length_predictor.data import read_prompts
    split = split_prompts(read_prompts(prompts))
    head = train_head(Rows(states[:, 1], lengths[:, None], ids), split, CAP, QUICK)
    again = train_head(Rows(
        refine_features(states[row_of, 1], step_of, states[row_of, 1]),
        np.maximum(1, lengths[row_of] - step_of)[:, None], [ids[r] for r in row_of]),
        split, CAP, QUICK)
    tensors = {**head_tensors('', head.head, head.calibration),
               **head_tensors('refine.', again.head, again.calibration)}
    save_checkpoint(tmp_path / 'probe.safetensors', Card(
        'probe', 't', 100, D, 8, CAP, state_layer=LAYER, refine_layer=LAYER), tensors)
    held_out = [i for i in ids if split.place[i] == 'held-out']
    Predictions('proxy', held_out, points={'likeliest': np.full(len(held_out), 20.0)}).save(
        tmp_path / 'proxy.npz')
    varied = [row for row in range(count) if split.place[ids[row]] != 'held-out'][:200]
    fresh = [f'fresh-a/{ids[row]}' for row in varied]
    none = np.zeros(0, np.int64)
    StatesFile('t', [LAYER], LAYER, fresh, np.full(200, 9), states[varied, 1:],
               states[varied, 1], none, none, np.zeros((0, D), np.float32)).save(
                   tmp_path / 'more.npz')
    more = _file(tmp_path / 'more.jsonl.gz', {'target': 't', 'cap': CAP}, [
        {'id': i, 'n_prompt': 9, 'n': int(lengths[row])} for i, row in zip(fresh, varied)])
    arguments = argparse.Namespace(
        prompts=prompts, lengths=[run, run], states=tmp_path / 'states.npz', real_lengths=None,
        real_states=None,
        checkpoint=tmp_path / 'probe.safetensors', predictions=[tmp_path / 'proxy.npz'],
        out=tmp_path / 'out' / 'tables.json', only=[], more_states=[tmp_path / 'more.npz'],
        more_lengths=[more])
    made = make_tables(arguments, QUICK, 'the command', lambda line: None)
    tables = json.loads((tmp_path / 'out' / 'tables.json').read_text())
    rows = {row['predictor']: row for row in tables['comparison']}
    assert rows['the target itself, run 2']['same_length'] == 1.0
    assert rows['probe']['r2'] > 0.5 > rows['prompt length']['r2']
    assert rows['probe']['n'] == rows['proxy, likeliest']['n'] == len(held_out)
    assert [row['B'] for row in tables['bucket widths']] == [16, 32, 64]
    assert [row['generated'] for row in tables['refinement']] == [0, 4, 16]
    assert [row['variations'] for row in tables['training prompts']] == [0, 0, 0, 0, 200]
    assert len(tables['layers']) == 4
    assert len(tables['leave one out']) == 6
    text = open(made['markdown']).read()
    assert '### comparison' in text and '| probe | ' in text and tables['command'] == 'the command'
    arguments.only, arguments.lengths = ['comparison'], [run]
    make_tables(arguments, QUICK, 'another command', lambda line: None)
    again = json.loads(arguments.out.read_text())
    assert 'the target itself, run 2' not in {row['predictor'] for row in again['comparison']}
    assert (again['layers'], again['command']) == (tables['layers'], 'the command')
    assert {n: each['command'] for n, each in again['again'].items()} == {
        'comparison': 'another command'}


def test_ratios_of_unseen_prompts_are_told(tmp_path):
    """They are what the pessimistic factor starts from."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, CAP + 1, 300)
    ids = [str(i) for i in range(300)]
    split = Split(dict.fromkeys(ids, 'train'), dict(zip(ids, ids)))
    trained = train_head(Rows(
        rng.normal(size=(300, D)).astype(np.float32), lengths[:, None], ids), split, CAP, QUICK)
    quantiles = list(trained.ratios['quantiles'].values())
    assert trained.ratios['n'] == 300 and quantiles == sorted(quantiles) and quantiles[1] > 1.0
