# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How good predictions of length are."""

from typing import Any, Optional, Sequence

import numpy as np
from numpy.typing import NDArray

from timebill_ros.length_predictor.distribution import randomised_pit

QUANTILES = (0.5, 0.9, 0.95, 0.99)
MIN_ROWS_PER_SOURCE = 300


def evaluate_points(
    median: NDArray[np.float64], mean: NDArray[np.float64], lengths: NDArray[np.int64]
) -> dict[str, float]:
    """
    Return the errors of point predictions, tokens.

    MAE is that of ``median`` and RMSE and R2 are those of ``mean``, each measure at the point that
    serves it; Spearman's rank correlation is the mean's. Predictors with one point give it twice.
    Where all lengths are the same there is nothing to explain and R2 is 0.
    """
    error = mean - lengths
    return {
        'mae': float(np.abs(median - lengths).mean()),
        'rmse': float(np.sqrt((error**2).mean())),
        'r2': _r2(error, lengths),
        'spearman': spearman(mean, lengths),
    }


def _r2(error: NDArray[np.float64], lengths: NDArray[np.int64]) -> float:
    total = ((lengths - lengths.mean()) ** 2).sum()
    return float(1.0 - (error**2).sum() / total) if total > 0 else 0.0


def evaluate_distribution(
    pmf: NDArray[np.float64],
    lengths: NDArray[np.int64],
    sources: Optional[Sequence[str]] = None,
    width: int = 16,
) -> dict[str, Any]:
    """
    Return all measures of predicted ``pmf`` [rows, cap] against the true lengths [rows].

    With ``sources`` the calibration is also given for each source of at least 300 rows.
    """
    cumulated = np.cumsum(pmf, 1)
    points = {q: (cumulated < q - 1e-9).sum(1) + 1 for q in QUANTILES}
    points = {q: np.minimum(v, pmf.shape[1]) for q, v in points.items()}
    mean = pmf @ np.arange(1, pmf.shape[1] + 1)
    out: dict[str, Any] = dict(evaluate_points(points[0.5], mean, lengths))
    out['mae_upper_edge'] = float(
        np.abs(np.minimum(-(-points[0.5] // width) * width, pmf.shape[1]) - lengths).mean()
    )
    out['pinball'] = {str(q): pinball(points[q], lengths, q) for q in QUANTILES}
    out['coverage'] = {str(q): float((lengths <= points[q]).mean()) for q in QUANTILES}
    pit = randomised_pit(pmf, lengths)
    out['pit_below_0.95'] = float((pit < 0.95).mean())
    out['share_at_cap'] = float((lengths >= pmf.shape[1]).mean())
    out['rows'] = len(lengths)
    if sources is not None:
        names = np.asarray(sources)
        out['pit_below_0.95_by_source'] = {
            name: float((pit[names == name] < 0.95).mean())
            for name in sorted(set(sources))
            if (names == name).sum() >= MIN_ROWS_PER_SOURCE
        }
    return out


def pinball(predicted: NDArray[np.float64], lengths: NDArray[np.int64], q: float) -> float:
    """Return the mean pinball loss of a predicted q-quantile, tokens."""
    error = lengths - predicted
    return float(np.maximum(q * error, (q - 1.0) * error).mean())


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation; 0 where one side never changes, and so orders nothing."""
    ranks = _ranks(a), _ranks(b)
    if ranks[0].std() == 0 or ranks[1].std() == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]
