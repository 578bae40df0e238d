# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What a trained predictor said about the held-out prompts: what tables are made from."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

import numpy as np
from numpy.typing import NDArray

from timebill_ros.length_predictor.buckets import Buckets
from timebill_ros.length_predictor.distribution import Calibration

_POINT, _SHORTENED = 'point_', 'shortened_'


@dataclass
class Predictions:
    """
    Predictions for prompts that training did not see.

    Either class ``probabilities`` [rows, classes] with their calibration, also for prompts
    ``shortened`` to some number of tokens, or ``points`` [rows] in tokens by name.
    """

    kind: str
    ids: list[str]
    n_layers: int = 0
    points: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    probabilities: Optional[NDArray[np.float64]] = None
    calibration: Optional[Calibration] = None
    shortened: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def pmf(self, n_p: int = 0) -> NDArray[np.float64]:
        """Return the distributions [rows, cap], for prompts shortened to ``n_p`` if given."""
        chosen = self.shortened[n_p] if n_p else self.probabilities
        if self.calibration is None or chosen is None:
            raise ValueError(f'the predictions of {self.kind} are points, not distributions')
        return self.calibration.pmf(chosen)

    def save(self, path: Path) -> None:
        """Write the file (npz)."""
        stored = {f'{_POINT}{name}': v.astype(np.float32) for name, v in self.points.items()}
        if self.calibration is not None and self.probabilities is not None:
            buckets = self.calibration.buckets
            stored.update(
                probabilities=self.probabilities.astype(np.float16),
                within=self.calibration.within, knots=self.calibration.knots,
                buckets=np.array([buckets.width, buckets.cap]))
            stored.update({
                f'{_SHORTENED}{n}': p.astype(np.float16) for n, p in self.shortened.items()})
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(
            path, kind=self.kind, ids=np.array(self.ids), n_layers=self.n_layers, **stored)

    @staticmethod
    def load(path: Path) -> 'Predictions':
        """Read a file written by ``save``."""
        with np.load(path, allow_pickle=False) as z:
            made = Predictions(
                str(z['kind']), [str(i) for i in z['ids']], int(z['n_layers']),
                {name[len(_POINT):]: z[name].astype(np.float64)
                 for name in z.files if name.startswith(_POINT)})
            if 'probabilities' in z.files:
                width, cap = (int(n) for n in z['buckets'])
                made.calibration = Calibration(Buckets(width, cap), z['within'], z['knots'])
                made.probabilities = _whole(z['probabilities'])
                made.shortened = {
                    int(name[len(_SHORTENED):]): _whole(z[name])
                    for name in z.files if name.startswith(_SHORTENED)}
            return made


def _whole(stored: NDArray[np.float16]) -> NDArray[np.float64]:
    """Return probabilities that sum to 1 again after half precision."""
    probabilities = stored.astype(np.float64)
    return probabilities / probabilities.sum(-1, keepdims=True)
