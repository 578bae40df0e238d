# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Where quality profiles are kept: one's own beside the timing profiles, shipped ones in config."""

import hashlib
from pathlib import Path
import re

from timebill_ros.budget.quality import load, NOMINAL, QualityError, QualityProfile
from timebill_ros.paths import config_file

_READABLE = 60      # characters of the key that the file's name shows


def quality_path(cache_dir: Path, model_key: str, device: str) -> Path:
    """Return where the profile of a model on a kind of ``device`` ("cpu", "cuda") is stored."""
    key = f'quality {model_key} {device}'
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return cache_dir / 'profiles' / f'{_slug(key)[:_READABLE]}-{digest}.json'


def shipped_name(model_name: str, device: str) -> str:
    """Return the name of a shipped profile, relative to ``config``."""
    return f'quality/{_slug(model_name.rpartition("/")[2]).lower()}-{device}.json'


def find_quality(
        cache_dir: Path, model_key: str, model_name: str, device: str,
) -> tuple[QualityProfile, str]:
    """
    Return the profile to plan with, and what the operator should know of it.

    One's own measurement, else the one that is shipped, else ``NOMINAL``.
    """
    notes = []
    own = quality_path(cache_dir, model_key, device)
    for path, wanted in ((own, model_key), (_shipped(model_name, device), model_name)):
        try:
            if path is None:
                continue
            profile = load(path)
            if profile.model == wanted:
                return profile, '; '.join(notes)
            notes.append(f'{path} is of {profile.model}, not of {wanted}')
        except FileNotFoundError:
            continue
        except QualityError as error:
            notes.append(str(error))
    notes.append('the quality lost by tiers and eviction was not measured for this model and is '
                 'assumed (timebill profile --quality)')
    return NOMINAL, '; '.join(notes)


def _shipped(model_name: str, device: str) -> Path | None:
    try:
        return config_file(shipped_name(model_name, device))
    except FileNotFoundError:
        return None


def _slug(text: str) -> str:
    return re.sub(r'[^A-Za-z0-9.]+', '-', text).strip('-')
