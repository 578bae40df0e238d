# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A model's default sampling: ``config/models.yaml``, else its own generation_config."""

from dataclasses import asdict, fields
from fnmatch import fnmatchcase
import json
from pathlib import Path
from typing import Any, Dict

import yaml

from timebill_ros.engine.errors import ModelError
from timebill_ros.paths import config_file
from timebill_ros.query import Sampling

_FIELDS = tuple(field.name for field in fields(Sampling) if field.name != 'seed')
_TRANSFORMERS_TOP_K = 50     # of transformers' generate where a sampling model says nothing


def default_sampling(name: str, directory: Path) -> Sampling:
    """Return a model's sampling; raises ModelError if ``models.yaml`` or its own is malformed."""
    short_name = name.rpartition('/')[2].lower()
    for entry in _entries(config_file('models.yaml')):
        if fnmatchcase(short_name, str(entry['match']).lower()):
            return Sampling(**{key: value for key, value in entry.items() if key in _FIELDS})
    return _own_sampling(directory / 'generation_config.json')


def sampling_fields(sampling: Sampling) -> Dict[str, Any]:
    """Return what a query may set, without the seed."""
    return {key: value for key, value in asdict(sampling).items() if key in _FIELDS}


def _entries(path: Path) -> Any:
    try:
        entries = yaml.safe_load(path.read_text(encoding='utf-8'))['models']
        for entry in entries:
            unknown = set(entry) - set(_FIELDS) - {'match'}
            if unknown or 'match' not in entry:
                raise ValueError(f'unknown field {min(unknown)}' if unknown else 'match is missing')
            if not all(isinstance(entry[key], (int, float)) for key in _FIELDS if key in entry):
                raise ValueError(f'{entry["match"]}: every field is a number')
    except (OSError, TypeError, KeyError, ValueError, yaml.YAMLError) as error:
        raise ModelError(f'{path}: {error}') from error
    return entries


def _own_sampling(path: Path) -> Sampling:
    """Read generation_config.json as transformers' ``generate`` would."""
    if not path.is_file():
        return Sampling()
    try:
        raw = json.loads(path.read_text(encoding='utf-8'))
        penalty = float(raw.get('repetition_penalty') or 1.0)
        if not raw.get('do_sample'):
            return Sampling(repetition_penalty=penalty)
        top_k, top_p, temperature = (raw.get(key) for key in ('top_k', 'top_p', 'temperature'))
        return Sampling(
            temperature=1.0 if temperature is None else float(temperature),
            top_p=1.0 if top_p is None else float(top_p),
            top_k=_TRANSFORMERS_TOP_K if top_k is None else int(top_k), repetition_penalty=penalty)
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f'{path}: {error}') from error
