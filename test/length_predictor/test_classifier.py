# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The fine-tuned classifier learns, is seeded, and is indifferent to padding."""

import copy

import numpy as np
import pytest
import torch

from timebill_ros.length_predictor.classifier import slm_classifier
from timebill_ros.length_predictor.fit import fit, FitConfig, predict_logits
from timebill_ros.length_predictor.shortening import shorten


def _toy_task(count=240):
    """Prompts whose second token alone says the class."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, count)
    sequences = [
        [9, 40 + int(label), *rng.integers(50, 96, rng.integers(1, 8))] for label in labels
    ]
    return sequences, np.eye(2, dtype=np.float32)[labels], labels


def _train(target, seed=0):
    torch.manual_seed(seed)
    sequences, targets, labels = _toy_task()
    model = slm_classifier(copy.deepcopy(target.model.get_decoder()), 2, 4, 2, hidden=16)
    fit(
        model,
        sequences,
        targets,
        range(180),
        range(180, 240),
        FitConfig(epochs=6, batch_rows=16, learning_rate=1e-2, patience=6, seed=seed),
    )
    return model, predict_logits(model, sequences[180:]), labels[180:]


def test_it_learns_what_the_prompt_says(target):
    """A class that the prompt determines is found on prompts that were not trained on."""
    _, logits, labels = _train(target)
    assert (logits.argmax(1) == labels).mean() > 0.85


def test_training_is_seeded_and_touches_only_what_a_checkpoint_holds(target):
    """Two trainings agree, and the backbone's own weights stay as they were."""
    model, first, _ = _train(target)
    _, second, _ = _train(target)
    np.testing.assert_allclose(first, second, atol=1e-4)
    held = dict(model.trained())
    assert all('.base.' not in name and 'embed' not in name for name in held)
    assert torch.equal(
        model.backbone.layers[0].mlp.up_proj.base.weight,
        target.model.model.layers[0].mlp.up_proj.weight.to(torch.bfloat16),
    )


def test_shorten_keeps_head_and_tail():
    """The middle goes; nothing happens to a prompt that fits."""
    assert shorten(range(10), 5) == [0, 1, 7, 8, 9]
    assert shorten(range(4), 5) == [0, 1, 2, 3]
    assert shorten(range(9), 1) == [8]
    with pytest.raises(ValueError):
        shorten([1], 0)
