# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Collecting is resumable and keeps settings apart."""

import gzip
import json

import pytest

from timebill_ros.length_predictor.collect import collect, CollectConfig, read_lengths
from timebill_ros.length_predictor.data import Prompt, read_jsonl, read_prompts
from timebill_ros.length_predictor.states_file import collect_states, StatesFile
from timebill_ros.length_predictor.target import batches_by_length
from timebill_ros.query import Sampling

PROMPTS = [Prompt(f't/{i}', 't', ' '.join(f'word{i * j}' for j in range(1 + i % 7)))
           for i in range(20)]


def _config(**changes):
    return CollectConfig(
        **{'cap': 40, 'max_rows': 6, 'sampling': Sampling(repetition_penalty=1.2), **changes})


def test_an_interrupted_run_goes_on_where_it_stopped(target, tmp_path):
    whole, part = tmp_path / 'whole.jsonl', tmp_path / 'part.jsonl'
    seen = []
    assert collect(target, PROMPTS, whole, _config(), lambda *step: seen.append(step)) == 20
    assert seen[-1] == (20, 20)
    assert collect(target, PROMPTS[:9], part, _config()) == 9
    with part.open('a') as file:
        file.write('{"id": "t/9", "n_pro')          # a line that a crash cut off
    assert collect(target, PROMPTS, part, _config()) == 11
    assert read_lengths(part).rows == read_lengths(whole).rows
    assert collect(target, PROMPTS, part, _config()) == 0


def test_rows_say_length_and_cap(target, tmp_path):
    collect(target, PROMPTS, tmp_path / 'x.jsonl', _config(keep_tokens=True))
    rows = read_lengths(tmp_path / 'x.jsonl', 'llama-tiny').rows
    for row in rows.values():
        assert row['n'] == len(row['tokens'])
        assert row['capped'] == (row['tokens'][-1] != 2)
    assert {row['capped'] for row in rows.values()} == {True, False}


def test_other_settings_or_another_target_are_refused(target, tmp_path):
    path = tmp_path / 'x.jsonl'
    collect(target, PROMPTS[:2], path, _config())
    with pytest.raises(ValueError, match='other settings'):
        collect(target, PROMPTS, path, _config(sampling=Sampling(repetition_penalty=1.1)))
    with pytest.raises(ValueError, match='of target llama-tiny, not of other'):
        read_lengths(path, 'other')


def test_states_follow_the_answers(target, tmp_path):
    """A decode row exists for exactly the answers that went on after its step."""
    collect(target, PROMPTS, tmp_path / 'x.jsonl', _config(keep_tokens=True))
    lengths = read_lengths(tmp_path / 'x.jsonl')
    file = collect_states(target, PROMPTS, lengths, [1, 2], 2, [3, 10])
    file.save(tmp_path / 's.npz')
    file = StatesFile.load(tmp_path / 's.npz')
    assert file.prompt.shape == (20, 2, 32) and file.mean.shape == (20, 32)
    rows = set(zip(file.decode_row.tolist(), file.decode_step.tolist()))
    assert rows == {(i, step) for i, prompt_id in enumerate(file.ids) for step in (3, 10)
                    if lengths.rows[prompt_id]['n'] > step}


def test_files_with_faults_name_the_line(tmp_path):
    path = tmp_path / 'p.jsonl.gz'
    path.write_bytes(gzip.compress(b'{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}\n'))
    with pytest.raises(ValueError, match='line 2.*twice'):
        read_prompts(path)
    path = tmp_path / 'p.jsonl'
    path.write_text('{"broken\n' + json.dumps({'id': 1}) + '\n')
    with pytest.raises(ValueError, match='line 1'):
        list(read_jsonl(path))


def test_batches_hold_their_limits():
    lengths = [5, 100, 7, 90, 4000, 6]
    batches = batches_by_length(lengths, 2, 300, 50)
    assert batches[0] == [4]
    assert sorted(i for batch in batches for i in batch) == list(range(6))
    assert all(len(b) == 1 or len(b) * (max(lengths[i] for i in b) + 50) <= 300 for b in batches)
