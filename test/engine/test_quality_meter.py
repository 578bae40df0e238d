# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The quality meter on a small random model: what it compares, and what it makes of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from timebill_ros.engine.engine import Engine
from timebill_ros.engine.quality_meter import ALPHAS, cut_to, measure, Prompt, RESPONSE_TOKENS
from timebill_ros.engine.quality_report import measure_profile, read_prompts
from timebill_ros.executor.messages import Load
from timebill_ros.paths import config_file
from timebill_ros.query import Sampling

PROMPTS = [Prompt('a', 'The robot picks the red part up. ' * 40), Prompt('short', 'Hello')]


@pytest.fixture(scope='module')
def engine(make_checkpoint: Any) -> Engine:
    config = LlamaConfig(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        eos_token_id=2, initializer_range=0.3)
    return Engine.load(Load(str(make_checkpoint(config)), device='cpu', max_batch=1))


def test_prompts_are_cut_in_the_middle(engine: Engine) -> None:
    text = 'begin ' + 300 * 'x ' + 'the end'
    ids = cut_to(engine, text, 150)
    assert 140 <= len(ids) <= 150
    whole = cut_to(engine, text, 10 ** 6)
    assert ids[:10] == whole[:10] and ids[-10:] == whole[-10:] and len(whole) > 300


def test_the_reference_agrees_with_itself_and_eviction_costs(engine: Engine) -> None:
    readings = list(measure(engine, PROMPTS, (128,)))
    assert {each.prompt_id for each in readings} == {'a'}       # the other is too short
    assert [each.alpha for each in readings if each.tier == engine.info.tiers[0]] == list(ALPHAS)
    first, worst = readings[0], readings[-1]
    assert first.divergence == 0.0 and first.agreement == 1.0
    assert first.n_kept == first.n_prompt and worst.n_kept == 33
    assert worst.divergence > 0.0 and 0 < first.tokens <= RESPONSE_TOKENS
    again = list(measure(engine, PROMPTS, (128,)))              # and nothing is left behind
    assert [each.divergence for each in again] == [each.divergence for each in readings]


def test_a_labelled_prompt_is_answered_and_scored(engine: Engine) -> None:
    unlabelled = list(measure(engine, PROMPTS, (128,)))
    sequence = engine.open_sequence(
        cut_to(engine, PROMPTS[0].text, 128), 200, Sampling(**engine.info.sampling))
    while not engine.prefill_chunk(sequence):
        pass
    tokens = [engine.next_token(sequence)]
    while len(tokens) <= RESPONSE_TOKENS and tokens[-1] not in engine.end_ids:
        tokens += engine.decode_step([sequence])
    engine.close(sequence)
    text = engine.response_text([])
    for token in tokens:
        text.push(token)
    text.finish()
    labelled = [Prompt('a', PROMPTS[0].text, ('nothing of it', text.text))]
    readings = list(measure(engine, labelled, (128,)))
    assert readings[0].score == 1.0     # the reference says what the server would
    assert all(0.0 <= each.score <= 1.0 for each in readings)
    assert [each.divergence for each in readings] == [each.divergence for each in unlabelled]
    _, about = measure_profile(engine, labelled, (128,), lambda done, total: None)
    assert about['cells'][0]['score'] == 1.0 and about['cells'][0]['labelled'] == 1


def test_a_profile_holds_every_length_tier_and_alpha(engine: Engine) -> None:
    seen = []
    profile, about = measure_profile(
        engine, PROMPTS, (96, 128), lambda done, total: seen.append((done, total)))
    assert profile.model == engine.info.key and profile.lengths == (96, 128)
    assert set(profile.losses) == set(engine.info.tiers)
    assert profile.loss(engine.info.tiers[0], 0.0, 100) == 0.0
    assert about['cells'][0]['score'] is None and not about['cells'][0]['labelled']
    assert seen[-1] == (4, 4) and len(about['cells']) == 2 * len(engine.info.tiers) * len(ALPHAS)
    assert json.dumps(about)


def test_prompt_files_are_read_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / 'prompts.jsonl'
    path.write_text('{"id": 1, "prompt": "x"}\n{"id": 2}\n', encoding='utf-8')
    with pytest.raises(ValueError, match='prompts.jsonl:2'):
        read_prompts(path)
    shipped = read_prompts(config_file('quality/calibration.jsonl.gz'))
    assert len(shipped) >= 10 and min(len(each.text) for each in shipped) > 20000
    path.write_text('{"id": 1, "prompt": "x", "answers": ["y", 3]}\n', encoding='utf-8')
    assert read_prompts(path)[0].answers == ('y', '3')
