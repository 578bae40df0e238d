# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What ``timebill predictor`` answers to settings and files that are not what they should be."""

import json
from pathlib import Path
import sys

import pytest

from timebill_ros import cli
from timebill_ros.cli import in_engine_python
from timebill_ros.length_predictor.data import read_prompts
from timebill_ros.length_predictor.settings import read_settings

HEADER = {
    'target': 'here-1', 'dtype': 'bfloat16', 'device': 'cpu', 'temperature': 0.0, 'top_p': 1.0,
    'top_k': 0, 'repetition_penalty': 1.1, 'seed': None, 'cap': 64}


def _write(path: Path, text: str) -> str:
    path.write_text(text, encoding='utf-8')
    return str(path)


def test_what_a_settings_file_leaves_out_is_as_shipped(tmp_path):
    given = Path(_write(tmp_path / 'some.yaml', 'collect: {cap: 64}\nrefine: {hidden: 16}\n'))
    settings, shipped = read_settings(given), read_settings()
    assert settings['collect'] == {**shipped['collect'], 'cap': 64}
    assert settings['refine'] == {**shipped['refine'], 'hidden': 16}
    assert settings['train'] == shipped['train']


@pytest.mark.parametrize('text, says', [
    ('train: {widht: 3}', "train has no setting 'widht'"),
    ('trian: {width: 3}', "no settings are called 'trian'"),
    ('train: 5', 'sections with settings below them'),
    ('collect: {cap: 0}', 'cap: 0 is not a whole number from 2'),
    ('collect: {max_rows: true}', 'max_rows: True is not a whole number'),
    ('collect: {repetition_penalty: 0}', 'is not a number above 0'),
    ('states: {steps: [16, x]}', 'is not a list of whole numbers'),
    ('train: {dropout: .nan}', 'is not a number from 0'),
    (': : :', 'is not YAML'),
])
def test_a_setting_that_cannot_be_is_named(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        read_settings(Path(_write(tmp_path / 'bad.yaml', text)))


@pytest.mark.parametrize('text, says', [
    ('', 'holds no prompts'),
    ('{"id": "a", "prompt": "x"}\nnonsense\n', 'line 2: not a JSON object'),
    ('{"id": "a", "prompt": "x"}\n[1]\n{"id": "b", "prompt": "y"}\n', 'line 2: not a JSON object'),
    ('{"id": "a", "prompt": " "}\n', 'line 1: the prompt is empty'),
    ('{"id": "a", "prompt": "x"}\n{"id": "a", "prompt": "y"}\n', 'comes twice'),
])
def test_a_prompt_file_that_is_none_is_refused(tmp_path, text, says):
    with pytest.raises(ValueError, match=says):
        read_prompts(Path(_write(tmp_path / 'prompts.jsonl', text)))


def _predictor(monkeypatch, capsys, *arguments: str) -> str:
    """Return what a step that fails says."""
    monkeypatch.setattr(sys, 'argv', ['timebill', 'predictor', *arguments])
    assert cli.main() == 1
    return capsys.readouterr().err


def test_a_step_that_cannot_be_done_says_why(tmp_path, monkeypatch, capsys):
    prompts = _write(tmp_path / 'p.jsonl', '{"id": "a", "prompt": "x"}\n')
    lengths = _write(
        tmp_path / 'l.jsonl', json.dumps(HEADER) + '\n{"id": "a", "n_prompt": 9, "n": 5}\n')
    none = _write(tmp_path / 'none.jsonl', json.dumps(HEADER) + '\n')
    junk = _write(tmp_path / 'junk.npz', 'PK junk')
    train = ('train', 'probe', '--prompts', prompts, '--out', str(tmp_path / 'out'))
    for arguments, says in [
        ((*train, '--lengths', lengths), 'the probe needs --states'),
        ((*train, '--lengths', lengths, '--states', junk), 'is no whole file of states'),
        ((*train, '--lengths', none, '--states', junk), 'holds no lengths'),
        (('evaluate', junk, '--prompts', prompts, '--lengths', lengths), 'is corrupt'),
        (('tables', '--prompts', prompts, '--lengths', lengths, '--out', 'x'), 'needs --states'),
        (('tables', '--prompts', prompts, '--lengths', lengths, '--out', 'x', '--real-states', 'y'),
         'go together'),
        (('collect', '--prompts', prompts, '--out', 'x', '--model', '/none'), 'no such directory'),
    ]:
        assert says in _predictor(monkeypatch, capsys, *arguments)
    assert not (tmp_path / 'out').exists()


def test_a_command_without_torch_goes_on_in_the_engines_interpreter(tmp_path, monkeypatch, capsys):
    def without_torch(given: list[str]) -> int:
        raise ModuleNotFoundError("No module named 'torch'", name='torch')

    begun = []
    monkeypatch.setattr(cli, '_run', without_torch)
    monkeypatch.setattr(in_engine_python.os, 'execve', lambda *call: begun.append(call))
    monkeypatch.setattr(sys, 'argv', ['timebill', 'predictor', 'states'])
    monkeypatch.setenv('TIMEBILL_ENGINE_PYTHON', sys.executable)
    assert cli.main() == 1 and not begun
    assert 'has no torch; "timebill setup-engine"' in capsys.readouterr().err
    other = tmp_path / 'python'
    other.symlink_to(sys.executable)
    monkeypatch.setenv('TIMEBILL_ENGINE_PYTHON', str(other))
    cli.main()
    (python, argv, environment), = begun
    assert python == argv[0] == str(other) and argv[3:] == ['predictor', 'states']
    assert Path(argv[1]).name == 'run_module.py' and argv[2] == 'timebill_ros.cli'
    assert 'PYTHONPATH' not in environment
