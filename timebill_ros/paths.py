# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Where files outside the package live: the cache directory, and what comes with the package."""

import hashlib
import os
from pathlib import Path
import re

_READABLE = 60      # characters of a key that the name of its file shows


def cache_dir(override: str = '') -> Path:
    """
    Return the cache directory; it may not exist yet.

    ``override`` if given, else $TIMEBILL_CACHE_DIR, else $XDG_CACHE_HOME/timebill_ros, else
    ~/.cache/timebill_ros. It has ``models/`` (converted checkpoints), ``profiles/`` (timing
    profiles) and ``state/`` (learned values).
    """
    chosen = override or os.environ.get('TIMEBILL_CACHE_DIR', '')
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get('XDG_CACHE_HOME', '')
    return (Path(base) if base else Path.home() / '.cache') / 'timebill_ros'


def slug(text: str) -> str:
    """Return a text as part of a file's name."""
    return re.sub(r'[^A-Za-z0-9.]+', '-', text).strip('-')


def name_of(key: str) -> str:
    """Return the name of the JSON file of a key: readable, and different for every key."""
    return f'{slug(key)[:_READABLE]}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json'


def config_file(name: str) -> Path:
    """Return the path of a file of ``config/``; raises FileNotFoundError like ``shared_file``."""
    return shared_file('config', name)


def shared_file(directory: str, name: str) -> Path:
    """
    Return a file that comes with the package: in the source tree, or else in a share directory.

    ``directory`` is ``config`` or ``requirements``. Raises FileNotFoundError naming the places
    that were tried.
    """
    package = Path(__file__).resolve().parent
    # <prefix>/lib/python3.x/{site,dist}-packages/timebill_ros -> <prefix>/share/timebill_ros,
    # for colcon and for pip
    shares = [parent / 'share' / 'timebill_ros' for parent in package.parents]
    tried = [root / directory / name for root in (package.parent, *shares)]
    for path in tried:
        if path.is_file():
            return path
    places = ', '.join(str(path.parent) for path in tried[:4])
    raise FileNotFoundError(f'{directory} file {name} not found in {places}')
