# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Every way to build gives a package whose interfaces carry messages."""

import os
from pathlib import Path
import shutil
import subprocess
import sys
import sysconfig
import venv

import pytest

EXCHANGE = Path(__file__).resolve().with_name('exchange.py')
BUILD_TIMEOUT_S = 900
INSTALLED = (
    'lib/timebill_ros/query_server', 'lib/timebill_ros/timebill', 'bin/timebill',
    'share/timebill_ros/package.xml', 'share/timebill_ros/launch/timebill.launch.py',
    'share/timebill_ros/config/timebill.yaml', 'share/timebill_ros/requirements/engine.txt',
    'share/ament_index/resource_index/packages/timebill_ros')


def _run(command: list[str], cwd: Path, environment: dict[str, str], timeout_s: int = 60) -> str:
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True,
                          timeout=timeout_s, stdin=subprocess.DEVNULL)
    if done.returncode:
        pytest.fail(f'{" ".join(command)}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}',
                    pytrace=False)
    return done.stdout


def _colcon_build(workspace: Path, environment: dict[str, str], name: str,
                  *options: str, cmake: tuple[str, ...] = (), build: str = '') -> Path:
    """Build into a directory of that name, over the build of another one if ``build`` says so."""
    _run([sys.executable, '-m', 'colcon', '--log-base', f'log_{name}', 'build',
          '--base-paths', 'src', '--build-base', f'build_{build or name}', '--install-base', name,
          *options, '--cmake-args', f'-DPython3_EXECUTABLE={sys.executable}', *cmake],
         workspace, environment, BUILD_TIMEOUT_S)
    return workspace / name


def _sourced(install: Path, command: str, environment: dict[str, str], cwd: Path) -> str:
    """Run a command as a user does who has sourced the workspace."""
    return _run(['bash', '-c', f'. {install}/setup.bash && {command}'], cwd, environment).strip()


def _check_whole_package(install: Path, environment: dict[str, str], cwd: Path) -> None:
    prefix = install / 'timebill_ros'
    assert not [name for name in INSTALLED if not (prefix / name).exists()]
    place = _sourced(install, f'{sys.executable} {EXCHANGE}', environment, cwd)
    assert Path(place).is_relative_to(prefix)
    # One is on the path, the other is what "ros2 run" starts; both name their interpreter.
    for command in ('timebill', f'{prefix}/lib/timebill_ros/timebill'):
        assert 'doctor' in _sourced(install, f'{command} --help', environment, cwd)


def _modules(install: Path) -> Path:
    found, = (install / 'timebill_ros').glob('lib/python*/site-packages/timebill_ros')
    return found


@pytest.fixture(scope='module')
def environment(ros_environment: dict[str, str], ros_domain: int) -> dict[str, str]:
    return {**ros_environment, 'ROS_DOMAIN_ID': str(ros_domain)}


@pytest.fixture(scope='module')
def plain_install(source: Path, environment: dict[str, str]) -> Path:
    return _colcon_build(source.parents[1], environment, 'plain')


def test_colcon_build(
        plain_install: Path, environment: dict[str, str], tmp_path: Path) -> None:
    _check_whole_package(plain_install, environment, tmp_path)
    assert not (_modules(plain_install) / 'query.py').is_symlink()


def test_interfaces_only(
        plain_install: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """A planner's machine gets the interfaces and the client, and nothing that wants a model."""
    install = _colcon_build(plain_install.parent, environment, 'interfaces', build='plain',
                            cmake=('-DTIMEBILL_INTERFACES_ONLY=ON',))
    _sourced(install, f'{sys.executable} {EXCHANGE}', environment, tmp_path)
    script = tmp_path / 'try_client.py'
    script.write_text('import sys\nfrom timebill_ros import client\nclient.TimeBillClient\n'
                      'assert "torch" not in sys.modules\nprint(client.__file__)\n')
    place = _sourced(install, f'{sys.executable} {script}', environment, tmp_path)
    assert Path(place).is_relative_to(install)
    modules = _modules(install)
    assert not [name for name in ('engine', 'executor', 'cli') if (modules / name).exists()]
    assert not (install / 'timebill_ros' / 'lib' / 'timebill_ros').exists()


def test_colcon_build_with_symlinks(
        source: Path, plain_install: Path, environment: dict[str, str], tmp_path: Path) -> None:
    # The compiled interfaces of the build without links do; ament cannot link over its copies.
    shutil.rmtree(plain_install.parent / 'build_plain' / 'timebill_ros' / 'ament_cmake_python')
    install = _colcon_build(plain_install.parent, environment, 'links', '--symlink-install',
                            build='plain', cmake=('-DTIMEBILL_INTERFACES_ONLY=OFF',))
    _check_whole_package(install, environment, tmp_path)
    assert (_modules(install) / 'query.py').resolve() == source / 'timebill_ros' / 'query.py'


def test_pip_install(source: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """Install into a fresh environment that sees the ROS of the one that runs the tests."""
    prefix = tmp_path / 'env'
    venv.create(prefix, with_pip=False, symlinks=True)
    python = str(prefix / 'bin' / 'python')
    packages, = prefix.glob('lib/python*/site-packages')
    seen = sysconfig.get_path('purelib')
    (packages / 'ros.pth').write_text(f'import site; site.addsitedir({seen!r})\n')
    libraries = [str(prefix / 'lib'), environment['LD_LIBRARY_PATH']]
    environment = {**environment, 'LD_LIBRARY_PATH': os.pathsep.join(libraries),
                   '_ROS_WHEELS_BOOTSTRAP_COMPLETE': '1',
                   'CMAKE_ARGS': '-DCMAKE_BUILD_TYPE='}     # Release would be with -O3
    _run([sys.executable, '-m', 'pip', '--python', python, 'install',
          '--no-build-isolation', '--no-deps', str(source)], tmp_path, environment, BUILD_TIMEOUT_S)
    assert Path(_run([python, str(EXCHANGE)], tmp_path, environment).strip()).is_relative_to(prefix)
    assert not [name for name in INSTALLED if not (prefix / name).exists()]
    assert 'doctor' in _run([str(prefix / 'bin' / 'timebill'), '--help'], tmp_path, environment)
