# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A copy of the sources to build from, and an environment that knows ROS but not timebill_ros."""

import os
from pathlib import Path
import shutil

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    'CMakeLists.txt', 'MANIFEST.in', 'package.xml', 'pyproject.toml', 'setup.py', 'README.md',
    'CHANGELOG.rst', 'LICENSE', 'Makefile', 'action', 'cmake', 'config', 'launch', 'msg',
    'requirements', 'test', 'timebill_ros', 'tools')


@pytest.fixture(scope='session')
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy what a build needs, so that none leaves anything in the source tree."""
    copy = tmp_path_factory.mktemp('workspace') / 'src' / 'timebill_ros'
    copy.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name,
                            ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope='session')
def ros_environment() -> dict[str, str]:
    """Return the environment without the installation of timebill_ros that runs the tests."""
    environment = dict(os.environ)
    ours = [Path(prefix) for prefix in environment['AMENT_PREFIX_PATH'].split(os.pathsep)
            if (Path(prefix) / 'share' / 'timebill_ros').is_dir()]
    for name in ('AMENT_PREFIX_PATH', 'CMAKE_PREFIX_PATH', 'COLCON_PREFIX_PATH', 'PYTHONPATH',
                 'LD_LIBRARY_PATH', 'PATH'):
        paths = [path for path in environment.get(name, '').split(os.pathsep) if path and not any(
            prefix == Path(path) or prefix in Path(path).parents for prefix in ours)]
        environment[name] = os.pathsep.join(paths)
    # Tests want the build, not fast code.
    environment.update(CFLAGS='-O0', CXXFLAGS='-O0', CMAKE_GENERATOR='Ninja')
    return environment
