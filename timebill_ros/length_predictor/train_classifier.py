# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training of predictors that read the prompt themselves: slm, and what it is compared with."""

from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np
from numpy.typing import NDArray
import torch

from timebill_ros.length_predictor import baselines
from timebill_ros.length_predictor.buckets import Buckets
from timebill_ros.length_predictor.classifier import (
    encoder_classifier,
    PromptClassifier,
    slm_classifier,
)
from timebill_ros.length_predictor.data import Prompt
from timebill_ros.length_predictor.distribution import fit_calibration, within_classes
from timebill_ros.length_predictor.fit import fit, FitConfig, predict_logits
from timebill_ros.length_predictor.head import softmax
from timebill_ros.length_predictor.predictions import Predictions
from timebill_ros.length_predictor.shortening import shorten
from timebill_ros.length_predictor.split import Split
from timebill_ros.length_predictor.target import Target
from timebill_ros.length_predictor.train import soft_labels

SHORTENED_TO = (16, 32, 64, 128, 256, 1024)     # N_p that slm is also measured at, tokens


@dataclass
class ClassifierTraining:
    """How a classifier on a backbone is trained."""

    width: int = 16                 # B, tokens
    n_layers: int = 16              # of the target, from the first
    rank: int = 16                  # of the low-rank updates
    max_prompt_tokens: int = 512
    encoder: str = ''               # directory of the baselines' encoder; '' = the package's
    fit: FitConfig = field(default_factory=FitConfig)


@dataclass
class Data:
    """Prompts that have lengths [rows, runs], and their split."""

    prompts: list[Prompt]
    lengths: NDArray[np.int64]
    cap: int
    split: Split

    def rows(self, place: str) -> list[int]:
        """Return the rows of "train", "validation" or "held-out"."""
        return [
            row for row, p in enumerate(self.prompts) if self.split.place[p.prompt_id] == place]

    @property
    def held_out_ids(self) -> list[str]:
        """The held-out prompts, in the order of their rows."""
        return [self.prompts[row].prompt_id for row in self.rows('held-out')]


Say = Callable[[str], None]
Tensors = dict[str, NDArray[Any]]


def train_slm(
    target: Target, data: Data, config: ClassifierTraining, say: Say
) -> tuple[Predictions, Tensors]:
    """Train the paper's predictor; return what it says and what its checkpoint has to hold."""
    whole = target.prompt_ids([p.text for p in data.prompts])
    sequences = [shorten(ids, config.max_prompt_tokens) for ids in whole]
    buckets = Buckets(config.width, data.cap)
    model = _slm(target, config, buckets.n_classes)
    _fit(model, sequences, soft_labels(buckets, data.lengths), data, config.fit, say)
    validation, held_out = data.rows('validation'), data.rows('held-out')
    calibration = fit_calibration(
        buckets,
        within_classes(buckets, data.lengths[data.rows('train')].ravel()),
        _probabilities(model, [sequences[i] for i in validation]),
        data.lengths[validation, 0],
        seed=config.fit.seed,
    )
    shortened = {
        n: _probabilities(model, [shorten(whole[i], n) for i in held_out]) for n in SHORTENED_TO}
    tensors = {name: value.detach().float().cpu().numpy() for name, value in model.trained()}
    tensors['calibration.within'] = calibration.within
    tensors['calibration.knots'] = calibration.knots
    return Predictions(
        'slm', data.held_out_ids, config.n_layers,
        probabilities=_probabilities(model, [sequences[i] for i in held_out]),
        calibration=calibration, shortened=shortened), tensors


def train_regression(
    target: Target, data: Data, config: ClassifierTraining, say: Say
) -> Predictions:
    """Train slm's backbone with one output, the length itself (the paper's "regression")."""
    sequences = [
        shorten(ids, config.max_prompt_tokens)
        for ids in target.prompt_ids([p.text for p in data.prompts])]
    model = _slm(target, config, 1)
    values = (data.lengths.mean(1, keepdims=True) / data.cap).astype(np.float32)
    config.fit.regression = True
    _fit(model, sequences, values, data, config.fit, say)
    said = predict_logits(model, [sequences[i] for i in data.rows('held-out')])
    return Predictions(
        'regression', data.held_out_ids, config.n_layers,
        {'value': np.clip(said[:, 0].astype(np.float64) * data.cap, 1, data.cap)})


def train_baseline(
    kind: str, device: str, data: Data, config: ClassifierTraining, say: Say
) -> Predictions:
    """Train "proxy" or "s3": classes of the first run's lengths on an encoder, all of it tuned."""
    encoder = baselines.find_encoder(config.encoder)
    sequences = baselines.encode(encoder, [p.text for p in data.prompts])
    lengths = data.lengths[:, 0]
    classes = baselines.classes(kind, lengths[data.rows('train')], data.cap)
    n_classes = len(classes.values)
    labels = np.eye(n_classes, dtype=np.float32)[classes.label(lengths)]
    torch.manual_seed(config.fit.seed)
    model = encoder_classifier(baselines.load_encoder(encoder), n_classes).to(device)
    _fit(model, sequences, labels, data, config.fit, say)
    said = _probabilities(model, [sequences[i] for i in data.rows('held-out')])
    return Predictions(kind, data.held_out_ids, points=classes.points(said))


def _slm(target: Target, config: ClassifierTraining, n_out: int) -> PromptClassifier:
    torch.manual_seed(config.fit.seed)
    decoder = target.model.get_decoder()
    return slm_classifier(decoder, config.n_layers, config.rank, n_out).to(target.device)


def _fit(
    model: PromptClassifier, sequences: list[list[int]], labels: NDArray[np.float32], data: Data,
    config: FitConfig, say: Say,
) -> None:
    fit(
        model, sequences, labels, data.rows('train'), data.rows('validation'), config,
        lambda epoch, loss, score: say(f'epoch {epoch}: {loss:.4f}, validation {score:.4f}'))


def _probabilities(
    model: PromptClassifier, sequences: list[list[int]]
) -> NDArray[np.float64]:
    return softmax(predict_logits(model, sequences).astype(np.float64))
