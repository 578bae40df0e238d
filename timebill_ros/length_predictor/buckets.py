# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Buckets of response length: the classes that the heads tell apart."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Buckets:
    """
    Classes of a response length N in tokens (TimeBill, section 3.2: label ceil(N / B)).

    Class n = 1 .. ``n_open`` holds the lengths (n - 1) * width < N <= n * width with N < cap. The
    last class, ``n_classes``, holds N = cap: an answer that would go on and an answer of some 500
    tokens are two things, and a cap that is a class of its own keeps them apart. Its upper edge
    min(cap, n * width) is the cap, as the paper's formula has it.
    """

    width: int = 16  # B, tokens
    cap: int = 512  # N_max that the lengths were collected with, tokens

    def __post_init__(self) -> None:
        """Refuse sizes that make no classes."""
        if self.width < 1 or self.cap < 2:
            raise ValueError(
                f'bucket width {self.width} must be at least 1 and the cap {self.cap} at least 2'
            )

    @property
    def n_open(self) -> int:
        """Classes of answers that ended by themselves."""
        return -(-(self.cap - 1) // self.width)

    @property
    def n_classes(self) -> int:
        """All classes, the cap's included."""
        return self.n_open + 1

    def label(self, n_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the class of each length, counted from 1; ValueError outside 1 .. cap."""
        lengths = np.asarray(n_tokens, dtype=np.int64)
        if lengths.size and (lengths.min() < 1 or lengths.max() > self.cap):
            raise ValueError(
                f'response lengths must lie in 1 .. {self.cap}, '
                f'got {lengths.min()} .. {lengths.max()}'
            )
        return np.where(lengths >= self.cap, self.n_classes, -(-lengths // self.width))
