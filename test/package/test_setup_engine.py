# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
setup-engine makes an environment from a folder of wheels, without the network.

With a small wheel made here: the real ones are hundreds of megabytes.
"""

from pathlib import Path
import subprocess
import sys
import zipfile

import pytest

from timebill_ros.paths import shared_file
from timebill_ros.setup_engine import install, make_environment, setup_engine, SetupError

NAME = 'timebill_wheel_of_a_test'


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """Make a folder with one wheel of one module."""
    folder = tmp_path / 'wheels'
    folder.mkdir()
    info = f'{NAME}-1.0.dist-info'
    with zipfile.ZipFile(folder / f'{NAME}-1.0-py3-none-any.whl', 'w') as wheel:
        wheel.writestr(f'{NAME}.py', 'answer = 42\n')
        wheel.writestr(f'{info}/METADATA', f'Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n')
        wheel.writestr(f'{info}/WHEEL', 'Wheel-Version: 1.0\nGenerator: test\n'
                       'Root-Is-Purelib: true\nTag: py3-none-any\n')
        wheel.writestr(f'{info}/RECORD', '')
    return folder


def test_from_a_folder_of_wheels(wheels: Path, tmp_path: Path) -> None:
    python = make_environment(tmp_path / 'engine', sys.executable)
    requirements = tmp_path / 'requirements.txt'
    requirements.write_text(f'{NAME}==1.0\n')
    install(python, requirements, wheels)
    code = f'import {NAME}, sys; print({NAME}.answer, sys.prefix)'
    said = subprocess.run([str(python), '-c', code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ['42', str(tmp_path / 'engine')]

    # A second time it is taken as it is.
    assert make_environment(tmp_path / 'engine', '/no/such/python') == python

    requirements.write_text('timebill-nobody-has-this-wheel\n')
    with pytest.raises(SetupError, match=f'{wheels} has to hold a wheel of everything'):
        install(python, requirements, wheels)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match='no folder'):
        setup_engine(tmp_path / 'engine', sys.executable, tmp_path / 'nowhere')
    with pytest.raises(SetupError, match='python3-venv'):
        make_environment(tmp_path / 'engine', '/no/such/python')


@pytest.mark.parametrize('name', ['engine.txt', 'tested.txt', 'model.txt'])
def test_requirements_come_with_the_package(name: str) -> None:
    assert shared_file('requirements', name).is_file()
