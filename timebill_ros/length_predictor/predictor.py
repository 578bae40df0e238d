# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The one interface of all predictors, as the engine calls it."""

from pathlib import Path
from typing import Optional, Protocol, Sequence

import numpy as np
from numpy.typing import NDArray

from timebill_ros.length_predictor.buckets import Buckets
from timebill_ros.length_predictor.checkpoint import (
    Card,
    check_fits,
    CheckpointError,
    load_checkpoint,
)
from timebill_ros.length_predictor.distribution import Calibration, LengthDistribution
from timebill_ros.length_predictor.head import Head

State = NDArray[np.float32]


class Predictor(Protocol):
    """Says how long an answer will be. Not thread-safe; one per engine."""

    name: str  # goes into QueryTiming.predictor
    card: Card
    state_layer: int  # layer whose state at the last prompt token ``predict`` needs; 0 = none
    refine_layer: int  # layer whose newest state ``refine`` needs; 0 = it cannot refine
    max_prompt_tokens: int  # most that it reads of a prompt; 0 = it reads none of it
    beside: bool  # it can run while the target's prefill does

    def predict(
        self, prompt_ids: Sequence[int], state: Optional[State] = None
    ) -> LengthDistribution:
        """
        Return the distribution of the response length N for a prompt.

        ``state`` [d_model] is the target's state at the last prompt token after decoder layer
        ``state_layer`` (counted from 1, before any norm). ``prompt_ids`` are shortened as the
        caller sees fit, at most to ``max_prompt_tokens``.
        """

    def refine(self, state: State, n_generated: int, prompt_state: State) -> LengthDistribution:
        """
        Return the distribution of the whole N, after ``n_generated`` >= 1 tokens.

        ``state`` [d_model] is the target's state after layer ``refine_layer`` at the newest token,
        that is, of the step that reads the token ``n_generated``.
        """


class ProbePredictor:
    """A head on the target's own states: a prediction is two small products."""

    def __init__(self, card: Card, tensors: dict[str, NDArray[np.float32]]) -> None:
        self.name = 'probe'
        self.card = card
        self.max_prompt_tokens, self.beside = 0, False
        self.state_layer = card.state_layer
        self.refine_layer = card.refine_layer
        self._d_model = card.d_model
        buckets = Buckets(card.width, card.cap)
        self._head, self._calibration = _parts(tensors, '', buckets)
        if card.refine_layer:
            self._refine_head, self._refine_calibration = _parts(tensors, 'refine.', buckets)

    def predict(
        self, prompt_ids: Sequence[int], state: Optional[State] = None
    ) -> LengthDistribution:
        """See Predictor. The prompt's ids are not looked at."""
        if state is None or state.shape != (self._d_model,):
            raise ValueError(
                f'the probe needs the state of layer {self.state_layer}, [{self._d_model}]'
            )
        return self._calibration.distribution(self._head.of_one(np.asarray(state, np.float32)))

    def refine(self, state: State, n_generated: int, prompt_state: State) -> LengthDistribution:
        """See Predictor."""
        if not self.refine_layer:
            raise ValueError(
                'this probe was trained without states of decode steps and cannot refine'
            )
        features = refine_features(
            np.asarray(state, np.float32)[None],
            np.array([n_generated]),
            np.asarray(prompt_state, np.float32)[None],
        )
        remaining = self._refine_calibration.distribution(self._refine_head.of_one(features[0]))
        return remaining.shift(n_generated)


class FixedPredictor:
    """The baselines "median" and "length": the prompt's length at most counts."""

    def __init__(self, card: Card, tensors: dict[str, NDArray[np.float32]]) -> None:
        self.name = card.kind
        self.card = card
        self.max_prompt_tokens, self.beside = 0, False
        self.state_layer = self.refine_layer = 0
        self._head, self._calibration = _parts(tensors, '', Buckets(card.width, card.cap))
        self._uses_length = card.kind == 'length'

    def predict(
        self, prompt_ids: Sequence[int], state: Optional[State] = None
    ) -> LengthDistribution:
        """See Predictor."""
        features = length_features(np.array([len(prompt_ids) if self._uses_length else 1]))
        return self._calibration.distribution(self._head.probabilities(features)[0])

    def refine(self, state: State, n_generated: int, prompt_state: State) -> LengthDistribution:
        """Never called: ``refine_layer`` is 0."""
        raise ValueError(f'the predictor {self.name} cannot refine')


def refine_features(
    states: NDArray[np.float32], n_generated: NDArray[np.int64], prompt_states: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return [rows, 2 * d_model + 1]: newest states, the prompts' states, log(1 + generated)."""
    log = np.log1p(n_generated)[:, None]
    return np.concatenate([states, prompt_states, log], 1).astype(np.float32)


def length_features(n_prompt: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return [rows, 3]: powers of log(1 + prompt tokens)."""
    log = np.log1p(n_prompt).astype(np.float32)[:, None]
    return np.concatenate([log, log**2, log**3], 1)


def load_predictor(
    path: Path,
    target_key: str,
    vocab_size: int,
    d_model: int,
    target_directory: Optional[Path] = None,
    device: str = 'cpu',
) -> Predictor:
    """
    Load a checkpoint for the given target; everything that can be wrong with it is found here.

    ``device`` is the target's; ``target_directory`` serves the kind "slm", whose backbone is the
    target's own first layers. Raises CheckpointError for a corrupt file, another vocabulary or
    another target.
    """
    card, tensors = load_checkpoint(path)
    check_fits(card, path, target_key, vocab_size, d_model)
    try:
        if card.kind == 'probe':
            if not device.startswith('cuda'):
                return ProbePredictor(card, tensors)
            import torch

            from timebill_ros.length_predictor.device_probe import DeviceProbe

            return DeviceProbe(card, tensors, torch.device(device))
        if card.kind in ('median', 'length'):
            return FixedPredictor(card, tensors)
        if card.kind == 'slm':
            if target_directory is None:
                raise CheckpointError(
                    f'{path}: the predictor slm needs the directory of its target'
                )
            from timebill_ros.length_predictor.slm import SlmPredictor

            return SlmPredictor(card, tensors, target_directory, device)
    except KeyError as error:
        raise CheckpointError(f'predictor checkpoint {path} lacks the tensor {error}') from error
    raise CheckpointError(f'predictor checkpoint {path} is of the unknown kind {card.kind!r}')


def head_tensors(
    prefix: str, head: Head, calibration: Calibration
) -> dict[str, NDArray[np.float64]]:
    """Return what _parts reads back: a head and its calibration under ``prefix``."""
    tensors = {
        f'{prefix}head.{name}': value.astype(np.float64) for name, value in head.tensors().items()
    }
    # the standardisation keeps single precision too: states have outlier features of large mean
    for name in ('mean', 'scale'):
        tensors[f'calibration.{prefix}{name}'] = tensors.pop(f'{prefix}head.{name}')
    tensors[f'calibration.{prefix}within'] = calibration.within
    tensors[f'calibration.{prefix}knots'] = calibration.knots
    return tensors


def _parts(
    tensors: dict[str, NDArray[np.float32]], prefix: str, buckets: Buckets
) -> 'tuple[Head, Calibration]':
    within = tensors[f'calibration.{prefix}within'].astype(np.float64)
    calibration = Calibration(
        buckets, within, tensors[f'calibration.{prefix}knots'].astype(np.float64)
    )
    head = Head(
        tensors[f'calibration.{prefix}mean'],
        tensors[f'calibration.{prefix}scale'],
        *(tensors[f'{prefix}head.{name}'] for name in ('w1', 'b1', 'w2', 'b2')),
    )
    return head, calibration
