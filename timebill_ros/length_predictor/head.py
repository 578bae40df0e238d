# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A small head on fixed features: two layers, evaluated in numpy within microseconds."""

from dataclasses import dataclass, field
from typing import Optional

import numpy as np
from numpy.typing import NDArray

CLIP_DEVIATIONS = 8.0   # standard deviations that a feature may lie off its mean


@dataclass
class Head:
    """
    An ensemble of two-layer perceptrons on standardised features, averaged.

    Arrays: ``mean``, ``scale`` [features]; ``w1`` [members, hidden, features], ``b1`` [members,
    hidden], ``w2`` [members, classes, hidden], ``b2`` [members, classes].
    """

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    w1: NDArray[np.float32]
    b1: NDArray[np.float32]
    w2: NDArray[np.float32]
    b2: NDArray[np.float32]
    _flat: Optional[NDArray[np.float32]] = field(default=None, repr=False, compare=False)

    def member_logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return [members, rows, classes] for ``features`` [rows, features]."""
        # clipped: a state far outside of what training saw must not drive the answer to an extreme
        x = np.clip((features - self.mean) / self.scale, -CLIP_DEVIATIONS, CLIP_DEVIATIONS)
        hidden = np.einsum('mhf,rf->mrh', self.w1, x, optimize=True) + self.b1[:, None]
        hidden = hidden * _sigmoid(hidden)
        return np.einsum('mch,mrh->mrc', self.w2, hidden, optimize=True) + self.b2[:, None]

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the mean distribution of the members, [rows, classes]."""
        return softmax(self.member_logits(features).astype(np.float64)).mean(0)

    def of_one(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return ``probabilities`` of one row [features], [classes], as fast as it goes."""
        if self._flat is None:
            members, hidden, width = self.w1.shape
            self._flat = np.ascontiguousarray(self.w1.reshape(members * hidden, width))
            self._inverse = (1.0 / self.scale).astype(np.float32)
        x = (features - self.mean) * self._inverse
        np.minimum(np.maximum(x, -CLIP_DEVIATIONS, out=x), CLIP_DEVIATIONS, out=x)
        first = self._flat @ x + self.b1.ravel()
        first *= _sigmoid(first)
        members = np.matmul(self.w2, first.reshape(len(self.w2), -1, 1))[:, :, 0] + self.b2
        return softmax(members.astype(np.float64)).mean(0)

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """Return the arrays by name, for a checkpoint."""
        return {
            'mean': self.mean,
            'scale': self.scale,
            'w1': self.w1,
            'b1': self.b1,
            'w2': self.w2,
            'b2': self.b2,
        }


def join_heads(heads: list[Head]) -> Head:
    """Return one ensemble of several heads that share their standardisation."""
    first = heads[0]
    if any(
        not np.array_equal(h.mean, first.mean) or not np.array_equal(h.scale, first.scale)
        for h in heads
    ):
        raise ValueError('heads of one ensemble must share their standardisation')
    return Head(
        first.mean,
        first.scale,
        *(np.concatenate([getattr(h, name) for h in heads]) for name in ('w1', 'b1', 'w2', 'b2')),
    )


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the softmax over the last axis."""
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def _sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return (0.5 * (1.0 + np.tanh(0.5 * x))).astype(np.float32)
