# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Predictor checkpoints: safetensors with a model card inside, refused when they do not fit."""

from dataclasses import asdict, dataclass, field
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FORMAT = 1
_KEY = 'timebill_length_predictor'


class CheckpointError(ValueError):
    """A predictor checkpoint that cannot be used; the message says why and what to do."""


@dataclass
class Card:
    """What a checkpoint says about itself."""

    kind: str  # "probe", "slm", "length", "median"
    target: str  # target.target_key of the model whose answers it predicts
    vocab_size: int
    d_model: int  # width of the states it reads, or of its backbone
    width: int  # B, tokens
    cap: int  # tokens
    state_layer: int = 0  # probe: layer whose state at the last prompt token it reads; 0 = none
    refine_layer: int = 0  # probe: layer whose newest state refines it while decoding; 0 = none
    n_layers: int = 0  # slm: layers of the target that are its backbone
    rank: int = 0  # slm: rank of its updates
    max_prompt_tokens: int = 0  # slm: longest prompt it was trained on
    sampling: dict[str, Any] = field(
        default_factory=dict
    )  # settings that the lengths were collected with
    data: dict[str, Any] = field(default_factory=dict)  # prompts, rows, split
    metrics: dict[str, Any] = field(default_factory=dict)  # on the held-out prompts
    command: str = ''
    commit: str = ''
    format_version: int = FORMAT
    sha256: str = ''  # of all tensors, set when saving


def save_checkpoint(path: Path, card: Card, tensors: dict[str, NDArray[Any]]) -> None:
    """Write a checkpoint, in half precision but for tensors named "calibration..."."""
    from safetensors.numpy import save_file

    stored = {
        name: np.ascontiguousarray(
            value.astype(np.float32 if name.startswith('calibration.') else np.float16)
        )
        for name, value in tensors.items()
    }
    card.sha256 = _digest(stored)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(stored, str(path), metadata={_KEY: json.dumps(asdict(card), sort_keys=True)})
    path.chmod(0o644)      # the library makes it readable by its owner alone


def load_checkpoint(path: Path) -> 'tuple[Card, dict[str, NDArray[np.float32]]]':
    """Read and verify a checkpoint; tensors come back in float32. Raises CheckpointError."""
    from safetensors import safe_open, SafetensorError

    if not path.is_file():
        raise CheckpointError(f'predictor checkpoint {path} does not exist')
    try:
        with safe_open(str(path), framework='numpy') as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f'predictor checkpoint {path} is corrupt: {error}') from error
    card = _card(path, metadata)
    if _digest(stored) != card.sha256:
        raise CheckpointError(
            f'predictor checkpoint {path} is corrupt: its tensors do not match their checksum'
        )
    return card, {name: value.astype(np.float32) for name, value in stored.items()}


def read_card(path: Path) -> Card:
    """Read a checkpoint's card alone; its tensors are not looked at. Raises CheckpointError."""
    from safetensors import safe_open, SafetensorError

    try:
        with safe_open(str(path), framework='numpy') as file:
            return _card(path, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f'predictor checkpoint {path} is corrupt: {error}') from error


def check_fits(card: Card, path: Path, target_key: str, vocab_size: int, d_model: int) -> None:
    """Raise CheckpointError unless the checkpoint was trained for this very target."""
    if card.vocab_size != vocab_size:
        raise CheckpointError(
            f'predictor checkpoint {path} was trained with a vocabulary of '
            f'{card.vocab_size} tokens, '
            f'the model has {vocab_size}; train one for this model (timebill predictor train)'
        )
    if card.target != target_key:
        raise CheckpointError(
            f'predictor checkpoint {path} was trained for the target {card.target}, the model is '
            f'{target_key}; train one for this model (timebill predictor train)'
        )
    if card.d_model != d_model:
        raise CheckpointError(
            f'predictor checkpoint {path} reads states of width {card.d_model}, '
            f'the model has {d_model}'
        )


def _card(path: Path, metadata: dict[str, str]) -> Card:
    if _KEY not in metadata:
        raise CheckpointError(f'{path} is not a predictor checkpoint: it has no model card')
    try:
        raw = json.loads(metadata[_KEY])
        known = raw.get('format_version') == FORMAT
        card = Card(**raw) if known else None
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f'predictor checkpoint {path} is corrupt: its model card is unreadable'
        ) from error
    if card is None:
        raise CheckpointError(
            f'predictor checkpoint {path} has format {raw.get("format_version")}, '
            f'this version reads {FORMAT}'
        )
    return card


def _digest(stored: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name in sorted(stored):
        digest.update(f'{name}:{stored[name].dtype}:{stored[name].shape}'.encode())
        digest.update(stored[name].tobytes())
    return digest.hexdigest()
