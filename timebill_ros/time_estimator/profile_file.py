# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Where the profile of a machine and model is kept, and what happens to a file that is not it."""

import os
from pathlib import Path

from timebill_ros.paths import name_of
from timebill_ros.time_estimator.coefficients import (
    CoefficientsError, load, TimingCoefficients)


def profile_path(cache_dir: Path, key: str) -> Path:
    """Return the file of a key: ``profiles/``, readable, and different for every key."""
    return cache_dir / 'profiles' / name_of(key)


def load_for(path: Path, key: str) -> TimingCoefficients:
    """
    Read a profile that has to be valid for ``key``.

    Raises FileNotFoundError, or CoefficientsError that names the file and what is wrong with it:
    damage, that it cannot be read, or both keys where it is of another machine or model.
    """
    try:
        coefficients = load(path)
        coefficients.require_key(key)
    except CoefficientsError as error:
        raise CoefficientsError(f'{path} cannot be used: {error}') from error
    return coefficients


def set_aside(path: Path) -> str:
    """Rename a file that cannot be used, so that it can be looked at; returns where it is now."""
    aside = path.with_name(path.name + '.bad')
    try:
        os.replace(path, aside)
    except OSError as error:
        return f'left where it is ({error.strerror})'
    return f'kept aside as {aside}'
