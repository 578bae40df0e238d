# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The settings of ``timebill predictor``: config/predictor.yaml, or a file with some of them."""

from math import isfinite
from pathlib import Path
from typing import Any, Optional

from timebill_ros.paths import config_file

Settings = dict[str, dict[str, Any]]

# The smallest value; of other whole numbers 1, of other numbers 0.
_LEAST = {'cap': 2, 'seed': 0}
_ABOVE_ZERO = ('repetition_penalty', 'learning_rate')
_AS_TRAIN = 'refine'        # this section may set whatever "train" has


def read_settings(path: Optional[Path] = None) -> Settings:
    """
    Return the shipped settings with those of ``path`` in their place.

    Raises ValueError naming the setting for a name that the shipped file does not have and for a
    value that is none of its kind; OSError if there is no such file.
    """
    shipped = _read(config_file('predictor.yaml'))
    if path is None:
        return shipped
    for section, values in _read(path).items():
        if section not in shipped:
            raise ValueError(f'{path}: no settings are called {section!r}; {_among(shipped)}')
        known = {**(shipped['train'] if section == _AS_TRAIN else {}), **shipped[section]}
        for name, value in values.items():
            if name not in known:
                raise ValueError(f'{path}: {section} has no setting {name!r}; {_among(known)}')
            wrong = _objection(name, value, known[name])
            if wrong:
                raise ValueError(f'{path}: {section}: {name}: {value!r} is not {wrong}')
        shipped[section].update(values)
    return shipped


def _read(path: Path) -> Settings:
    import yaml

    try:
        read = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} is not YAML: {error}') from error
    if not isinstance(read, dict) or not all(isinstance(v, dict) for v in read.values()):
        raise ValueError(f'{path}: sections with settings below them are expected')
    return read


def _objection(name: str, value: Any, shipped: Any) -> str:
    """Return what ``value`` should be, if it is not; '' = it is of the kind of ``shipped``."""
    if isinstance(shipped, str):
        return '' if isinstance(value, str) else 'a text'
    if isinstance(shipped, list):
        whole = isinstance(value, list) and all(_is_whole(each, 1) for each in value)
        return '' if whole else 'a list of whole numbers from 1'
    if isinstance(shipped, int):
        least = _LEAST.get(name, 1)
        return '' if _is_whole(value, least) else f'a whole number from {least}'
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)
    if name in _ABOVE_ZERO:
        return '' if number and value > 0 else 'a number above 0'
    return '' if number and value >= 0 else 'a number from 0'


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _among(names: dict[str, Any]) -> str:
    return f'there are {", ".join(map(str, names))}'
