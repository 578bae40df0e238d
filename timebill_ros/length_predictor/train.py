# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training of heads: cross-fitted members, calibrated on what they did not see."""

from dataclasses import asdict, dataclass, field
from typing import Any, Callable, Optional, Sequence

import numpy as np
from numpy.typing import NDArray

from timebill_ros.length_predictor.buckets import Buckets
from timebill_ros.length_predictor.distribution import (
    Calibration,
    fit_calibration,
    upper_edges,
    within_classes,
)
from timebill_ros.length_predictor.fit_head import fit_head, HeadConfig, standardisation
from timebill_ros.length_predictor.head import Head, join_heads
from timebill_ros.length_predictor.metrics import evaluate_distribution
from timebill_ros.length_predictor.split import Split
from timebill_ros.length_predictor.vary import origin


RATIO_QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


@dataclass
class HeadTraining:
    """A head's training: ``n_folds`` members, each early-stopped on its own fold."""

    width: int = 16
    n_folds: int = 5
    seed: int = 0
    head: HeadConfig = field(default_factory=lambda: HeadConfig(dropout=0.5, input_noise=0.3))
    spread: float = 0.0     # of a label over its neighbours, see ``soft_labels``


@dataclass
class Rows:
    """Training rows: features, the lengths of one or several runs, prompt ids."""

    features: NDArray[np.float32]  # [rows, features]
    lengths: NDArray[np.int64]  # [rows, runs], tokens; the first run is the one that measures use
    prompt_ids: list[str]  # [rows]

    def take(self, rows: NDArray[np.int64]) -> 'Rows':
        """Return a selection of the rows."""
        return Rows(self.features[rows], self.lengths[rows], [self.prompt_ids[i] for i in rows])


@dataclass
class TrainedHead:
    """A head with its calibration."""

    head: Head
    calibration: Calibration
    ratios: dict[str, Any]      # of N / N_hat on training prompts, by members that left them out

    def pmf(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the calibrated distributions [rows, cap]."""
        return self.calibration.pmf(self.head.probabilities(features))


def train_head(
    rows: Rows,
    split: Split,
    cap: int,
    config: HeadTraining,
    report: Callable[[str], None] = lambda line: None,
    more: Sequence[Rows] = (),
) -> TrainedHead:
    """
    Train on every row whose prompt is not held out, and on ``more``: variations (see ``vary``).

    Each member leaves out one fold of the prompt groups, stops early on it, and predicts it for
    the calibration; so every prompt but the held-out ones is trained on, and the calibration still
    sees only predictions of members that did not train on the prompt. A variation is in the fold of
    the prompt that it was made of, and is not calibrated with.
    """
    buckets = Buckets(config.width, cap)
    used = np.array(
        [i for i, prompt in enumerate(rows.prompt_ids) if split.place[prompt] != 'held-out']
    )
    fold = np.array([split.fold(rows.prompt_ids[i], config.n_folds) for i in used])
    features = np.concatenate([rows.features, *(each.features for each in more)])
    labels = np.concatenate([
        soft_labels(buckets, each.lengths, config.spread) for each in (rows, *more)])
    varied = [origin(prompt) for each in more for prompt in each.prompt_ids]
    if any(split.place[prompt] == 'held-out' for prompt in varied):
        raise ValueError('there are variations of held-out prompts among the additional rows')
    varied_fold = np.array([split.fold(prompt, config.n_folds) for prompt in varied], np.int64)
    scaling = standardisation(rows.features[used])
    members: list[Head] = []
    unseen = np.zeros((len(used), buckets.n_classes))
    for number in range(config.n_folds):
        settings = HeadConfig(**{**asdict(config.head), 'seed': config.seed * 1000 + number})
        others = len(rows.features) + np.flatnonzero(varied_fold != number)
        member, loss = fit_head(
            features,
            labels,
            [*used[fold != number], *others],
            list(used[fold == number]),
            settings,
            scaling,
        )
        unseen[fold == number] = member.probabilities(rows.features[used[fold == number]])
        members.append(member)
        report(
            f'member {number + 1}/{config.n_folds}: cross-entropy {loss:.3f} on the fold left out'
        )
    within = within_classes(buckets, rows.lengths[used].ravel())
    calibration = fit_calibration(buckets, within, unseen, rows.lengths[used, 0], seed=config.seed)
    n_hat = upper_edges(calibration.pmf(unseen), config.width)
    return TrainedHead(
        join_heads(members), calibration, ratio_quantiles(rows.lengths[used, 0], n_hat))


def ratio_quantiles(lengths: NDArray[np.int64], n_hat: NDArray[np.int64]) -> dict[str, Any]:
    """
    Return quantiles of N / N_hat on prompts unseen in training: what k has to cover.

    An answer that reached the cap counts as as long as the cap.
    """
    ratios = lengths / n_hat
    return {
        'n': len(ratios),
        'quantiles': {f'{q:.4g}': float(np.quantile(ratios, q)) for q in RATIO_QUANTILES},
    }


def soft_labels(
    buckets: Buckets, lengths: NDArray[np.int64], spread: float = 0.0
) -> NDArray[np.float32]:
    """
    Return [rows, classes]: the share of a row's runs in each class (ProD, arXiv 2604.07931).

    With a ``spread`` each is spread over its neighbours by a Gaussian of so many classes, because
    classes are ordered; the cap's class, which is another thing than a long answer, is not.
    """
    shares = np.mean(
        [np.eye(buckets.n_classes, dtype=np.float32)[buckets.label(run) - 1] for run in lengths.T],
        axis=0,
        dtype=np.float32,
    )
    if spread > 0.0:
        places = np.arange(buckets.n_open)
        kernel = np.exp(-0.5 * ((places[:, None] - places) / spread) ** 2)
        kernel /= kernel.sum(1, keepdims=True)
        shares[:, :-1] = shares[:, :-1] @ kernel.astype(np.float32)
    return shares


def held_out_rows(prompt_ids: Sequence[str], split: Split) -> NDArray[np.int64]:
    """Return the rows of held-out prompts."""
    return np.array(
        [i for i, prompt in enumerate(prompt_ids) if split.place[prompt] == 'held-out'], np.int64
    )


def measure(
    trained: TrainedHead, rows: Rows, split: Split, sources: Optional[dict[str, str]] = None
) -> dict[str, Any]:
    """Return the measures on the held-out rows."""
    held_out = rows.take(held_out_rows(rows.prompt_ids, split))
    return evaluate_distribution(
        trained.pmf(held_out.features),
        held_out.lengths[:, 0],
        [sources[i] for i in held_out.prompt_ids] if sources else None,
        trained.calibration.buckets.width,
    )


def label_noise(lengths: NDArray[np.int64]) -> tuple[float, float]:
    """
    Return the correlation of two runs and their mean absolute difference, tokens.

    Greedy decoding in 16-bit arithmetic is not one answer: near-ties fall differently in another
    batch. The correlation bounds the R2 that any predictor can reach on one run's lengths.
    """
    return (
        float(np.corrcoef(lengths[:, 0], lengths[:, 1])[0, 1]),
        float(np.abs(lengths[:, 0] - lengths[:, 1]).mean()),
    )
