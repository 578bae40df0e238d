# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints are loaded whole or refused with a reason; predictions obey their interface."""

from pathlib import Path

import numpy as np
import pytest
import torch

from timebill_ros.length_predictor import predictor as predictor_module
from timebill_ros.length_predictor.buckets import Buckets
from timebill_ros.length_predictor.checkpoint import (
    Card,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
)
from timebill_ros.length_predictor.classifier import slm_classifier
from timebill_ros.length_predictor.data import Prompt
from timebill_ros.length_predictor.distribution import within_classes
from timebill_ros.length_predictor.fit_head import HeadConfig
from timebill_ros.length_predictor.predictor import (
    head_tensors,
    load_predictor,
    refine_features,
)
from timebill_ros.length_predictor.split import split_prompts
from timebill_ros.length_predictor.target import load_target, target_key
from timebill_ros.length_predictor.train import HeadTraining, measure, Rows, train_head

SHIPPED = Path(predictor_module.__file__).parent / 'checkpoints'
CAP, WIDTH = 64, 8


def _rows(count=900):
    """States whose first component says the length, but for some noise."""
    rng = np.random.default_rng(4)
    states = rng.normal(size=(count, 6)).astype(np.float32)
    lengths = np.clip(20 + 12 * states[:, 0] + rng.normal(0, 4, count), 1, CAP).astype(np.int64)
    return Rows(states, lengths[:, None], [f'p/{i}' for i in range(count)])


@pytest.fixture(scope='module')
def trained():
    rows = _rows()
    split = split_prompts([Prompt(i, 'p', f'prompt number {i}') for i in rows.prompt_ids])
    head = HeadConfig(
        hidden=16, epochs=30, dropout=0.0, input_noise=0.0, batch_rows=32, learning_rate=1e-2)
    config = HeadTraining(width=WIDTH, n_folds=2, head=head)
    return train_head(rows, split, CAP, config), rows, split, config


@pytest.fixture
def checkpoint(trained, tmp_path):
    head, _, _, _ = trained
    tensors = head_tensors('', head.head, head.calibration)
    card = Card('probe', 'target-a', 100, 6, WIDTH, CAP, state_layer=2)
    save_checkpoint(tmp_path / 'probe.safetensors', card, tensors)
    return tmp_path / 'probe.safetensors'


def test_a_head_learns_and_is_calibrated_on_prompts_it_never_saw(trained):
    head, rows, split, _ = trained
    result = measure(head, rows, split)
    assert result['r2'] > 0.8 and result['spearman'] > 0.9
    assert 0.90 <= result['pit_below_0.95'] <= 0.99


def test_training_is_seeded(trained):
    head, rows, split, config = trained
    again = train_head(rows, split, CAP, config)
    np.testing.assert_allclose(head.head.w1, again.head.w1, atol=1e-5)
    np.testing.assert_array_equal(head.calibration.knots, again.calibration.knots)


def test_a_loaded_probe_predicts_as_the_trained_one(trained, checkpoint):
    """Half precision in the file moves a quantile by a token at most."""
    head, rows, _, _ = trained
    predictor = load_predictor(checkpoint, 'target-a', 100, 6)
    assert (predictor.name, predictor.state_layer, predictor.refine_layer) == ('probe', 2, 0)
    expected = head.pmf(rows.features[:20])
    for state, pmf in zip(rows.features[:20], expected):
        distribution = predictor.predict([], state)
        np.testing.assert_allclose(distribution.pmf, pmf, atol=5e-3)
        assert 1 <= distribution.quantile(0.5) <= distribution.quantile(0.95) <= CAP
        assert distribution.n_hat(CAP) % WIDTH == 0


def test_a_probe_without_its_state_says_so(checkpoint):
    predictor = load_predictor(checkpoint, 'target-a', 100, 6)
    with pytest.raises(ValueError, match='state of layer 2'):
        predictor.predict([1, 2, 3])
    with pytest.raises(ValueError, match='cannot refine'):
        predictor.refine(np.zeros(6, np.float32), 5, np.zeros(6, np.float32))


@pytest.mark.parametrize('target, vocabulary, width, message', [
    ('target-b', 100, 6, 'trained for the target target-a, the model is target-b'),
    ('target-a', 101, 6, 'vocabulary of 100 tokens, the model has 101'),
    ('target-a', 100, 8, 'states of width 6, the model has 8'),
])
def test_a_checkpoint_for_another_model_is_refused(checkpoint, target, vocabulary, width, message):
    with pytest.raises(CheckpointError, match=message):
        load_predictor(checkpoint, target, vocabulary, width)


def test_corrupt_files_are_refused(checkpoint, tmp_path):
    whole = checkpoint.read_bytes()
    faulty = tmp_path / 'faulty.safetensors'
    for content in (b'', b'not safetensors', whole[:-20], whole[:-8] + b'12345678'):
        faulty.write_bytes(content)
        with pytest.raises(CheckpointError, match='corrupt'):
            load_predictor(faulty, 'target-a', 100, 6)
    with pytest.raises(CheckpointError, match='does not exist'):
        load_predictor(tmp_path / 'none.safetensors', 'target-a', 100, 6)


def test_other_files_and_later_formats_are_refused(tmp_path):
    from safetensors.numpy import save_file
    save_file({'x': np.zeros(2, np.float32)}, tmp_path / 'x.safetensors')
    with pytest.raises(CheckpointError, match='no model card'):
        load_checkpoint(tmp_path / 'x.safetensors')
    card = Card('probe', 'a', 1, 1, 8, 64, format_version=99)
    save_checkpoint(tmp_path / 'y.safetensors', card, {'x': np.zeros(2)})
    with pytest.raises(CheckpointError, match='format 99'):
        load_checkpoint(tmp_path / 'y.safetensors')


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path):
    card = Card('probe', 'a', 1, 6, WIDTH, CAP, state_layer=1)
    save_checkpoint(tmp_path / 'y.safetensors', card, {'x': np.zeros(2)})
    with pytest.raises(CheckpointError, match='lacks the tensor'):
        load_predictor(tmp_path / 'y.safetensors', 'a', 1, 6)


def test_slm_round_trip(target, tmp_path):
    """The low-rank updates are all that a checkpoint holds, and they are all that is needed."""
    target.model.save_pretrained(tmp_path / 'model')
    (tmp_path / 'model' / 'tokenizer.json').write_text(_TOKENIZER)
    key = target_key(tmp_path / 'model')
    torch.manual_seed(0)
    decoder = load_target(tmp_path / 'model', 'cpu', 'bfloat16').model.get_decoder()
    model = slm_classifier(decoder, 2, 4, Buckets(WIDTH, CAP).n_classes)
    for _, parameter in model.trained():
        parameter.data += 0.05 * torch.randn_like(parameter)
    tensors = {name: value.detach().numpy() for name, value in model.trained()}
    tensors['calibration.within'] = within_classes(Buckets(WIDTH, CAP), [1, 2, 3])
    tensors['calibration.knots'] = np.linspace(0, 1, 11)
    card = Card('slm', key, 96, 32, WIDTH, CAP, n_layers=2, rank=4, max_prompt_tokens=20)
    save_checkpoint(tmp_path / 'slm.safetensors', card, tensors)
    with pytest.raises(CheckpointError, match='needs the directory'):
        load_predictor(tmp_path / 'slm.safetensors', key, 96, 32)
    predictor = load_predictor(tmp_path / 'slm.safetensors', key, 96, 32, tmp_path / 'model')
    short, long = predictor.predict([5, 6, 7]), predictor.predict(list(range(3, 90)))
    assert short.pmf.sum() == pytest.approx(1) and not np.allclose(short.pmf, long.pmf)
    same = predictor.predict([*range(3, 13), *range(80, 90)])       # what shortening leaves of it
    np.testing.assert_allclose(long.pmf, same.pmf, atol=1e-6)


def test_the_target_key_depends_on_the_weights_and_not_on_their_precision(target, tmp_path):
    target.model.save_pretrained(tmp_path / 'a')
    target.model.to(torch.bfloat16).save_pretrained(tmp_path / 'b')
    target.model.float()
    norm = target.model.model.norm.weight
    norm.data[3] += 0.5
    target.model.save_pretrained(tmp_path / 'c')
    norm.data[3] -= 0.5
    assert target_key(tmp_path / 'a') == target_key(tmp_path / 'b') != target_key(tmp_path / 'c')


@pytest.mark.parametrize('name', ['probe', 'slm'])
def test_shipped_checkpoints_load_for_the_embedded_model(name):
    """They are whole, small, and carry a card with their measures."""
    path = SHIPPED / f'smollm2-135m-{name}.safetensors'
    card, _ = load_checkpoint(path)
    assert (card.kind, card.vocab_size, card.d_model, card.cap) == (name, 49152, 576, 512)
    assert card.metrics['held_out']['rows'] > 3000 and card.command and card.sampling
    assert path.stat().st_size < 8e6
    if name == 'probe':
        predictor = load_predictor(path, card.target, 49152, 576)
        assert predictor.refine_layer == predictor.state_layer == 18
        zeros = np.zeros(576, np.float32)
        later = predictor.refine(zeros, 100, zeros)
        assert later.quantile(0.01) > 100 and later.pmf.sum() == pytest.approx(1)


def test_refinement_sees_how_far_the_answer_is():
    states = np.zeros((2, 3), np.float32)
    features = refine_features(states, np.array([0, 99]), states)
    assert features.shape == (2, 7) and features[1, 6] == pytest.approx(np.log(100))


_TOKENIZER = (
    '{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], '
    '"normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null, '
    '"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}')
