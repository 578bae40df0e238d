# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Which predictor a server uses: found, loaded and checked when it starts."""

from pathlib import Path
from typing import Optional

from timebill_ros.length_predictor.checkpoint import CheckpointError, read_card
from timebill_ros.length_predictor.predictor import load_predictor, Predictor
from timebill_ros.length_predictor.target import target_key

SHIPPED = Path(__file__).resolve().with_name('checkpoints')
DEFAULT = 'default'
DEFAULT_KIND = 'probe'      # the best on held-out prompts, its cost included
_SHIPPED_KINDS = ('probe', 'slm')


def predictor_for(
    name: str, target_directory: Path, vocab_size: int, d_model: int, device: str
) -> Optional[Predictor]:
    """
    Return the predictor that ``name`` asks for, ready to predict; None = none.

    ``name``: "" = none; "default" = the shipped one for this target, none if there is none;
    "probe" or "slm" = the shipped one of that kind; else a checkpoint, or a directory with one.
    Raises CheckpointError if it is missing, corrupt, or was made for another target.
    """
    if not name:
        return None
    if name == DEFAULT or name in _SHIPPED_KINDS:
        key = target_key(target_directory)
        path = _shipped(DEFAULT_KIND if name == DEFAULT else name, key)
        if path is None:
            if name == DEFAULT:
                return None
            raise CheckpointError(
                f'no predictor {name} is shipped for the target {key}; train one '
                '(timebill predictor train), or set predictor to "" to plan without')
    else:
        path = _only_checkpoint(Path(name).expanduser())
        key = target_key(target_directory)
    return load_predictor(path, key, vocab_size, d_model, target_directory, device)


def _shipped(kind: str, key: str) -> Optional[Path]:
    for path in sorted(SHIPPED.glob(f'*-{kind}.safetensors')):
        if read_card(path).target == key:
            return path
    return None


def _only_checkpoint(path: Path) -> Path:
    if not path.is_dir():
        return path
    found: list[Path] = sorted(path.glob('*.safetensors'))
    if len(found) != 1:
        raise CheckpointError(
            f'{path} holds {len(found)} .safetensors files; name the checkpoint itself')
    return found[0]
