# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The paper's predictor at run time: a language model beside the target."""

from pathlib import Path
from typing import Optional, Sequence

import numpy as np
from numpy.typing import NDArray
import torch

from timebill_ros.length_predictor.buckets import Buckets
from timebill_ros.length_predictor.checkpoint import Card, CheckpointError
from timebill_ros.length_predictor.classifier import PromptClassifier, slm_classifier
from timebill_ros.length_predictor.distribution import Calibration, LengthDistribution
from timebill_ros.length_predictor.fit import predict_logits
from timebill_ros.length_predictor.head import softmax
from timebill_ros.length_predictor.shortening import shorten


class SlmPredictor:
    """The target's first layers, tuned by low-rank updates, with a head over length classes."""

    def __init__(
        self,
        card: Card,
        tensors: dict[str, NDArray[np.float32]],
        target_directory: Path,
        device: str,
    ) -> None:
        from timebill_ros.length_predictor.target import load_target

        self.name = 'slm'
        self.state_layer = self.refine_layer = 0
        self.card = card
        self.max_prompt_tokens = card.max_prompt_tokens
        # a stream of its own on a GPU; on a CPU both would fight for the same cores
        self.beside = device.startswith('cuda')
        self._stream = torch.cuda.Stream(device) if self.beside else None
        buckets = Buckets(card.width, card.cap)
        self._calibration = Calibration(
            buckets,
            tensors.pop('calibration.within').astype(np.float64),
            tensors.pop('calibration.knots').astype(np.float64),
        )
        decoder = load_target(target_directory, device, 'bfloat16').model.get_decoder()
        self.model: PromptClassifier = slm_classifier(
            decoder, card.n_layers, card.rank, buckets.n_classes
        ).to(device)
        expected = {name for name, _ in self.model.trained()}
        if expected != set(tensors):
            raise CheckpointError(
                'the predictor slm lacks or has unknown tensors: '
                f'{sorted(expected ^ set(tensors))[:4]}'
            )
        try:
            self.model.load_state_dict(
                {name: torch.from_numpy(value) for name, value in tensors.items()}, strict=False
            )
        except RuntimeError as error:
            raise CheckpointError(
                f'the predictor slm has tensors of other shapes than its backbone: {error}'
            ) from error

    def predict(
        self, prompt_ids: Sequence[int], state: Optional[NDArray[np.float32]] = None
    ) -> LengthDistribution:
        """See Predictor. A prompt beyond ``max_prompt_tokens`` is shortened."""
        with torch.cuda.stream(self._stream):       # does nothing without one
            logits = predict_logits(self.model, [shorten(prompt_ids, self.max_prompt_tokens)])
        return self._calibration.distribution(softmax(logits.astype(np.float64))[0])

    def refine(
        self, state: NDArray[np.float32], n_generated: int, prompt_state: NDArray[np.float32]
    ) -> LengthDistribution:
        """Never called: ``refine_layer`` is 0."""
        raise ValueError('the predictor slm cannot refine')
