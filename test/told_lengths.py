# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A length predictor for virtual servers: it predicts what it is told."""

from math import exp
from statistics import NormalDist

from timebill_ros.budget.quantiles import Quantiles

SPREAD = 0.55       # of log N / N_hat


class Lengths:
    """A lognormal distribution of response lengths."""

    def __init__(self, n_hat: float) -> None:
        self._n_hat = n_hat

    def mean(self) -> float:
        return self._n_hat

    def n_hat(self, cap: int) -> int:
        return max(1, min(cap, round(self._n_hat)))

    def quantiles(self, probabilities: tuple[float, ...], cap: int) -> Quantiles:
        return tuple(
            (p, max(1, min(cap, round(self._n_hat * exp(SPREAD * NormalDist().inv_cdf(p))))))
            for p in probabilities)


class Predictor:
    """Predicts what it is told."""

    name, beside = 'told', False
    state_layer = refine_layer = max_prompt_tokens = 0

    def __init__(self, n_hat: float) -> None:
        self._n_hat = n_hat

    def predict(self, prompt: list[int], state: object) -> Lengths:
        return Lengths(self._n_hat)
