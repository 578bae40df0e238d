# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Cache directories that do not convert and compile again what the user's own one has."""

from pathlib import Path

from timebill_ros.paths import cache_dir

SHARED = ('models', 'kernels')      # converted and compiled once, and never changed


def linked_cache(folder: Path) -> Path:
    """Make ``folder`` a cache directory without profiles, learned values and drift."""
    folder.mkdir(exist_ok=True)
    for name in SHARED:
        real = cache_dir() / name
        real.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(real)
    return folder
