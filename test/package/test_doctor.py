# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""doctor finds what is there, names what is missing, and says how to mend it."""

import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

ENGINE = os.environ.get('TIMEBILL_ENGINE_PYTHON', '')

pytestmark = pytest.mark.usefixtures('ros_domain')


def _doctor(*arguments: str, **environment: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Return the exit status and the findings by name."""
    done = subprocess.run(
        [sys.executable, '-m', 'timebill_ros.cli', 'doctor', '--json', *arguments],
        cwd='/', env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=120)
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    assert report['ok'] == (done.returncode == 0)
    return done.returncode, {finding['name']: finding for finding in report['findings']}


@pytest.mark.skipif(not ENGINE, reason='no TIMEBILL_ENGINE_PYTHON: "make build" sets it')
def test_all_is_well_after_make() -> None:
    status, findings = _doctor()
    assert status == 0, findings
    assert {'python', 'ros', 'discovery', 'engine', 'embedded model', 'device', 'cache',
            'memory'} <= findings.keys()
    assert 'torch 2.' in findings['engine']['detail']
    assert findings['embedded model']['detail'].endswith('.gguf')
    assert not findings['engine']['mend']


def test_an_interpreter_without_the_libraries() -> None:
    status, findings = _doctor('--engine-python', sys.executable)
    assert status == 1
    assert 'has no torch, transformers' in findings['engine']['detail']
    assert findings['engine']['mend'] == 'timebill setup-engine'


def test_an_interpreter_that_is_not_there() -> None:
    status, findings = _doctor('--engine-python', '/no/such/python')
    assert status == 1
    assert '/no/such/python' in findings['engine']['detail']
    assert 'setup-engine' in findings['engine']['mend']


@pytest.mark.parametrize(('name', 'value', 'status', 'mend'), [
    ('ROS_DOMAIN_ID', '500', 'warning', '0..101'),
    ('ROS_DOMAIN_ID', 'home', 'warning', '0..101'),
    ('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCAL', 'warning', 'LOCALHOST'),
    ('ROS_AUTOMATIC_DISCOVERY_RANGE', 'OFF', 'missing', 'LOCALHOST'),
])
def test_discovery_settings_that_keep_nodes_apart(
        name: str, value: str, status: str, mend: str) -> None:
    _, findings = _doctor('--engine-python', sys.executable, **{name: value})
    assert findings['discovery']['status'] == status
    assert value in findings['discovery']['detail']
    assert mend in findings['discovery']['mend']


def test_a_middleware_that_is_not_installed() -> None:
    status, findings = _doctor(
        '--engine-python', sys.executable, RMW_IMPLEMENTATION='rmw_nowhere_cpp')
    assert status == 1
    assert findings['ros']['status'] == 'missing'
    assert 'RMW_IMPLEMENTATION' in findings['ros']['mend']


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    in_the_way = tmp_path / 'file'
    in_the_way.touch()
    status, findings = _doctor(
        '--engine-python', sys.executable, '--cache-dir', str(in_the_way / 'cache'))
    assert status == 1
    assert findings['cache']['status'] == 'missing'
    assert 'TIMEBILL_CACHE_DIR' in findings['cache']['mend']
