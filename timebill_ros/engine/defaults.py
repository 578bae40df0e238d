# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A model's default sampling: ``config/models.yaml``, else its own generation_config."""

from dataclasses import asdict, fields
from fnmatch import fnmatchcase
import json
from math import inf
from pathlib import Path
from typing import Any

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
            return _checked(entry)
    return _own_sampling(directory / 'generation_config.json')


def sampling_fields(sampling: Sampling) -> dict[str, Any]:
    """Return what a query may set, without the seed."""
    return {key: value for key, value in asdict(sampling).items() if key in _FIELDS}


def _entries(path: Path) -> Any:
    try:
        entries = yaml.safe_load(path.read_text(encoding='utf-8'))['models']
        for entry in entries:
            unknown = set(entry) - set(_FIELDS) - {'match'}
            if unknown or 'match' not in entry:
                raise ValueError(f'unknown field {min(unknown)}' if unknown else 'match is missing')
            _checked(entry)
    except (OSError, TypeError, KeyError, ValueError, yaml.YAMLError) as error:
        raise ModelError(f'{path}: {error}') from error
    return entries


def _checked(given: dict[str, Any]) -> Sampling:
    """Return the fields that are given as a sampling; raises ValueError for what cannot be one."""
    for key, allowed, limit in (
            ('temperature', lambda value: 0.0 <= value < inf, '0 or above'),
            ('top_p', lambda value: 0.0 < value <= 1.0, 'above 0 and at most 1'),
            ('top_k', lambda value: value >= 0 and value == int(value), 'a whole number from 0 on'),
            ('repetition_penalty', lambda value: 0.0 < value < inf, 'above 0')):
        value = given.get(key, 1.0)
        if not isinstance(value, (int, float)) or not allowed(value):
            raise ValueError(f'{key} {value!r} is not {limit}')
    return Sampling(**{key: int(value) if key == 'top_k' else float(value)
                       for key, value in given.items() if key in _FIELDS})


def _own_sampling(path: Path) -> Sampling:
    """Read generation_config.json as transformers' ``generate`` would."""
    if not path.is_file():
        return Sampling()
    try:
        raw = json.loads(path.read_text(encoding='utf-8'))
        given = {key: raw[key] for key in _FIELDS if raw.get(key) is not None}
        if raw.get('do_sample'):
            return _checked({'temperature': 1.0, 'top_k': _TRANSFORMERS_TOP_K, **given})
        return _checked({key: given[key] for key in given if key == 'repetition_penalty'})
    except (ValueError, TypeError, AttributeError) as error:
        raise ModelError(f'{path}: {error}') from error
