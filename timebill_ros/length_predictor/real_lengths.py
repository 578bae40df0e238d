# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Real response lengths of 7-8B models from the embedded model's states: cross-validated heads."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from timebill_ros.length_predictor.metrics import spearman
from timebill_ros.length_predictor.states_file import StatesFile

TARGETS = ('Qwen1.5-7B-Chat', 'Mistral-7B-Instruct-v0.2', 'Meta-Llama-3-8B-Instruct')
_FOLDS = 10
_CLIP = 8.0         # standard deviations, as in ``head``
_GAMMA = 1.0        # of the Gaussian kernel, per mean squared distance of a feature
_RIDGE = 0.3        # added to the kernel's diagonal of ones


def read_real_lengths(path: Path) -> dict[str, Any]:
    """Read ``{"prompts": [...], "prompt_tokens": [...], "lengths": {model: [...]}}``, gzipped."""
    with gzip.open(path, 'rt', encoding='utf-8') as file:
        return json.load(file)


def real_length_table(data: dict[str, Any], states: StatesFile) -> list[dict[str, Any]]:
    """
    Return, per target, how well lengths are predicted that ten-fold heads have not seen.

    ``states`` has the rows of ``data``'s prompts. Heads are Gaussian-kernel ridges on the log
    length; "examples" is what each is trained on. Beside them stands how the length of the best
    other of the three targets orders the same prompts: another model's real answer.
    """
    layer = states.decode_layer
    whole = np.concatenate([*(states.at(n) for n in states.layers), states.mean], 1)
    log_prompt = np.log1p(np.array(data['prompt_tokens'], np.float64))[:, None]
    features = {
        f'layer {layer}': states.at(layer),
        'all layers read and the mean': whole,
        'prompt length': np.concatenate([log_prompt, log_prompt**2], 1),
    }
    known = {name: _floats(data['lengths'][name]) for name in TARGETS}
    table: list[dict[str, Any]] = []
    for target, lengths in known.items():
        kept = np.isfinite(lengths)
        for name, values in features.items():
            for share in (0.25, 0.5, 1.0) if values is whole else (1.0,):
                table.append({'target': target, 'features': name, **_cross_validated(
                    values[kept], lengths[kept], share)})
        others = {
            other: spearman(values[both], lengths[both])
            for other, values in known.items() if other != target
            for both in [kept & np.isfinite(values)]}
        best = max(others, key=lambda other: others[other])
        table.append({'target': target, 'features': f'the length of the answer of {best}',
                      'spearman': others[best]})
    return table


def _floats(values: list[Any]) -> NDArray[np.float64]:
    return np.array([np.nan if v is None else v for v in values], np.float64)


def _cross_validated(
    features: NDArray[np.float64], lengths: NDArray[np.float64], share: float
) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    fold = rng.integers(0, _FOLDS, len(lengths))
    log = np.log(lengths)
    said = np.zeros(len(lengths))
    counts = []
    for number in range(_FOLDS):
        train = rng.permutation(np.flatnonzero(fold != number))
        train = train[:round(share * len(train))]
        said[fold == number] = _kernel_ridge(features[train], log[train], features[fold == number])
        counts.append(len(train))
    error = log - said
    return {
        'examples': round(float(np.mean(counts))), 'n': len(lengths),
        'spearman': spearman(said, log),
        'r2_log': float(1.0 - (error**2).sum() / ((log - log.mean())**2).sum()),
        'mae': float(np.abs(np.exp(said) - lengths).mean()),
    }


def _kernel_ridge(
    train: NDArray[np.float64], log: NDArray[np.float64], test: NDArray[np.float64]
) -> NDArray[np.float64]:
    mean, scale = train.mean(0), train.std(0) + 1e-6
    a, b = (np.clip((x - mean) / scale, -_CLIP, _CLIP) for x in (train, test))
    kernel = _kernel(a, a)
    weights = np.linalg.solve(kernel + _RIDGE * np.eye(len(a)), log - log.mean())
    return log.mean() + _kernel(b, a) @ weights


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    squares = (a * a).mean(1)[:, None] + (b * b).mean(1) - 2.0 * a @ b.T / a.shape[1]
    return np.exp(-_GAMMA * squares)
