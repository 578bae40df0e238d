# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Which interpreter the engine runs in, its command line, and the environment it is given."""

from collections.abc import Mapping
import os
from pathlib import Path
import shutil
import sys

from timebill_ros.paths import cache_dir

_RUN_MODULE = Path(__file__).resolve().parent / 'run_module.py'

# Belongs to the node's interpreter; in another one these load the wrong libraries or modules.
_NODE_ONLY = ('PYTHONPATH', 'PYTHONHOME', 'PYTHONSTARTUP', 'VIRTUAL_ENV', 'CMAKE_PREFIX_PATH')
_NODE_ONLY_PREFIXES = ('AMENT_', 'COLCON_', '_ROS_WHEELS_')


def engine_environment_dir() -> Path:
    """Return where ``timebill setup-engine`` puts its environment: the user's data directory."""
    base = os.environ.get('XDG_DATA_HOME', '')
    return (Path(base) if base else Path.home() / '.local' / 'share') / 'timebill_ros' / 'engine'


def engine_python(configured: str = '') -> str:
    """
    Return the interpreter that the engine runs in.

    ``configured`` if given (a path, or a name on PATH), else $TIMEBILL_ENGINE_PYTHON, else the
    environment made by
    ``timebill setup-engine`` if it exists, else the running interpreter. Raises FileNotFoundError
    if there is none.
    """
    chosen = configured or os.environ.get('TIMEBILL_ENGINE_PYTHON', '')
    if not chosen:
        own = engine_environment_dir() / 'bin' / 'python'
        return str(own) if own.exists() else sys.executable
    found = shutil.which(os.path.expanduser(chosen))
    if found is None:
        raise FileNotFoundError(
            f'engine_python {chosen!r} is not an executable; make one with: timebill setup-engine'
        )
    # Not resolved: a virtual environment's python is a symbolic link, and its path is what selects
    # the environment.
    return os.path.abspath(found)


def module_argv(python: str, module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of this package in another interpreter."""
    return [python, str(_RUN_MODULE), f'timebill_ros.{module}', *arguments]


def engine_argv(python: str, read_fd: int, write_fd: int) -> list[str]:
    """Return the engine's command line; the descriptors are its ends of the two pipes."""
    return module_argv(
        python, 'executor.engine_main', '--read-fd', str(read_fd), '--write-fd', str(write_fd))


def engine_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """
    Return the node's environment without what belongs to its interpreter and its ROS.

    OpenMP and CUDA settings stay; of LD_LIBRARY_PATH only the directories of the ROS installation
    go, because on some machines the accelerator's libraries are found through it.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name not in _NODE_ONLY and not name.startswith(_NODE_ONLY_PREFIXES)
    }
    ros_prefixes = [sys.prefix] if sys.prefix != sys.base_prefix else []
    for name in ('AMENT_PREFIX_PATH', 'COLCON_PREFIX_PATH'):
        ros_prefixes += [prefix for prefix in environ.get(name, '').split(os.pathsep) if prefix]
    libraries = [
        path
        for path in environ.get('LD_LIBRARY_PATH', '').split(os.pathsep)
        if path and not any(_is_under(path, prefix) for prefix in ros_prefixes)
    ]
    kept.pop('LD_LIBRARY_PATH', None)
    if libraries:
        kept['LD_LIBRARY_PATH'] = os.pathsep.join(libraries)
    # Without it torch looks for the user's name, and the C library opens a socket for that.
    kept.setdefault('TORCHINDUCTOR_CACHE_DIR', str(cache_dir() / 'inductor'))
    # The script's own directory must not shadow top-level modules, and a crash should say where.
    kept.update(PYTHONSAFEPATH='1', PYTHONUNBUFFERED='1', PYTHONFAULTHANDLER='1')
    return kept


def _is_under(path: str, prefix: str) -> bool:
    return Path(path) == Path(prefix) or Path(prefix) in Path(path).parents
