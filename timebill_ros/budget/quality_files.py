# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Where quality profiles are kept: one's own beside the timing profiles, shipped ones in config."""

from dataclasses import replace
from pathlib import Path

from timebill_ros.budget.quality import load, NOMINAL, QualityError, QualityProfile
from timebill_ros.paths import config_file, name_of, slug

DEVICES = ('cpu', 'cuda')
# QualityProfile.source: measured here, shipped, of another kind of device; NOMINAL's is "assumed"
OWN, SHIPPED, OTHER_DEVICE = 'own', 'shipped', 'other device'
_HOW = 'timebill profile --quality'


def quality_path(cache_dir: Path, model_key: str, device: str) -> Path:
    """Return where the profile of a model on a kind of ``device`` ("cpu", "cuda") is stored."""
    return cache_dir / 'profiles' / name_of(f'quality {model_key} {device}')


def shipped_name(model_name: str, device: str) -> str:
    """Return the name of a shipped profile, relative to ``config``."""
    return f'quality/{slug(model_name.rpartition("/")[2]).lower()}-{device}.json'


def find_quality(
        cache_dir: Path, model_key: str, model_name: str, device: str,
) -> tuple[QualityProfile, str]:
    """
    Return the profile to plan with, and what the operator should know of it.

    One's own measurement, else the one that is shipped, else one of the same model on another kind
    of device, of which only eviction's losses hold here, else ``NOMINAL``.
    """
    notes: list[str] = []
    for kind in (device, *(each for each in DEVICES if each != device)):
        own = quality_path(cache_dir, model_key, kind)
        for source, path, wanted in (
                (OWN, own, model_key), (SHIPPED, _shipped(model_name, kind), model_name)):
            profile = None if path is None else _read(path, wanted, notes)
            if profile is None:
                continue
            profile = replace(profile, source=source if kind == device else OTHER_DEVICE)
            if kind != device:
                profile = replace(profile, losses=dict(list(profile.losses.items())[:1]))
                notes.append(f'the quality lost by eviction was measured on {kind}, that of tiers '
                             f'is assumed ({_HOW})')
            return profile, '; '.join(notes)
    notes.append('the quality lost by tiers and eviction was not measured for this model and is '
                 f'assumed ({_HOW})')
    return NOMINAL, '; '.join(notes)


def _read(path: Path, wanted: str, notes: list[str]) -> QualityProfile | None:
    try:
        profile = load(path)
    except FileNotFoundError:
        return None
    except QualityError as error:
        notes.append(str(error))
        return None
    if profile.model != wanted:
        notes.append(f'{path} is of {profile.model}, not of {wanted}')
        return None
    return profile


def _shipped(model_name: str, device: str) -> Path | None:
    try:
        return config_file(shipped_name(model_name, device))
    except FileNotFoundError:
        return None
