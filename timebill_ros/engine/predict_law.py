# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The law of a length predictor's time, measured when the engine starts."""

import time
from typing import TYPE_CHECKING

import numpy as np

from timebill_ros.length_predictor.device_probe import DeviceProbe
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.fit import fit_law, Sample
from timebill_ros.time_estimator.laws import PREDICT

if TYPE_CHECKING:
    from timebill_ros.engine.engine import Engine
    from timebill_ros.length_predictor.predictor import Predictor

_PROMPT_TOKENS = (16, 64, 128, 256, 512)    # of a predictor that reads prompts
_ROUNDS = 3
_STATE_ROUNDS = 30                          # of one that reads a state: each is well below 1 ms


def with_predict_law(coefficients: TimingCoefficients, engine: 'Engine') -> TimingCoefficients:
    """
    Return the coefficients with the law of the engine's predictor in place of any other.

    A stored profile may be from before the predictor, or of another; measuring it takes
    milliseconds (of one that reads prompts: a second or two). One that is ready before the prefill
    is over has no law: it adds nothing.
    """
    if engine.predictor is None or isinstance(engine.predictor, DeviceProbe):
        return coefficients.with_laws(PREDICT, [])
    return coefficients.with_laws(PREDICT, [fit_law(PREDICT, _samples(engine.predictor))])


def _samples(predictor: 'Predictor') -> list[Sample]:
    points = [n for n in _PROMPT_TOKENS if n <= predictor.max_prompt_tokens]
    state = np.zeros(predictor.card.d_model, np.float32) if predictor.state_layer else None
    each = [(0, _STATE_ROUNDS)] if not points else [(n, _ROUNDS) for n in points]
    predictor.predict([1] * 16, state)      # the first one is slower
    samples = []
    for n_tokens, rounds in each:
        for run in range(rounds):
            began_s = time.perf_counter()
            predictor.predict([1] * n_tokens, state)
            samples.append(Sample(PREDICT, n_tokens, time.perf_counter() - began_s, run=run))
    return samples
