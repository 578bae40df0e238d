# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Build a wheel by running CMakeLists.txt, the one description of the build.

Metadata is in pyproject.toml. The interfaces are generated and compiled against the ROS of the
environment, so install with ``pip install . --no-build-isolation``. $CMAKE_ARGS is passed on:
``CMAKE_ARGS=-DTIMEBILL_INTERFACES_ONLY=ON``.
"""

from collections import defaultdict
import os
from pathlib import Path
import shlex
import shutil
import subprocess
import sys

from setuptools import Distribution, setup
from setuptools.command.build import build
from setuptools.command.editable_wheel import editable_wheel

SOURCE = Path(__file__).resolve().parent
PACKAGE = 'timebill_ros'


def cmake_environment() -> dict[str, str]:
    """Return the environment in which CMake finds the ROS packages of the running interpreter."""
    environment = dict(os.environ)
    executables = str(Path(sys.executable).parent)
    environment['PATH'] = os.pathsep.join([executables, environment.get('PATH', os.defpath)])
    if (Path(sys.prefix) / 'share' / 'ament_index').is_dir():
        for name in ('AMENT_PREFIX_PATH', 'CMAKE_PREFIX_PATH'):
            known = [path for path in environment.get(name, '').split(os.pathsep) if path]
            environment[name] = os.pathsep.join([*known, sys.prefix])
    if not environment.get('AMENT_PREFIX_PATH'):
        sys.exit(
            f'{PACKAGE} is built against ROS 2, and this environment has none. Use "pip install . '
            '--no-build-isolation" where the ROS wheels are installed (requirements/), or source '
            'a ROS 2 installation first.')
    return environment


def cmake_install(work: Path) -> Path:
    """Configure, build and install with CMake under ``work``; return the prefix."""
    environment = cmake_environment()
    prefix = work / 'prefix'
    shutil.rmtree(prefix, ignore_errors=True)
    generator = ['-G', 'Ninja'] if shutil.which('ninja', path=environment['PATH']) else []
    cmake = shutil.which('cmake', path=environment['PATH']) or 'cmake'
    for command in (
            ['-S', str(SOURCE), '-B', str(work / 'cmake'), *generator,
             '-DCMAKE_BUILD_TYPE=Release', '-DBUILD_TESTING=OFF',
             f'-DCMAKE_INSTALL_PREFIX={prefix}', f'-DPython3_EXECUTABLE={sys.executable}',
             *shlex.split(environment.get('CMAKE_ARGS', ''))],
            ['--build', str(work / 'cmake')],
            ['--install', str(work / 'cmake')]):
        subprocess.run([cmake, *command], check=True, env=environment)
    return prefix


class CMakeBuild(build):
    """Take the Python package from CMake's installation, and everything else as data files."""

    def run(self) -> None:
        """Build, then say what belongs into the wheel."""
        super().run()
        prefix = cmake_install(Path(self.build_temp).resolve())
        package, = prefix.glob(f'lib/python*/*-packages/{PACKAGE}')
        shutil.copytree(package, Path(self.build_lib) / PACKAGE, dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns('__pycache__'))
        data_files = defaultdict(list)
        for path in sorted(prefix.rglob('*')):
            place = path.relative_to(prefix)
            # bin/ holds what the entry points of pyproject.toml make.
            if path.is_file() and package.parent not in path.parents and place.parts[0] != 'bin':
                data_files[str(place.parent)].append(os.path.relpath(path, SOURCE))
        self.distribution.data_files = list(data_files.items())


class NoEditable(editable_wheel):
    """Refuse: the generated interfaces have no place in the source tree."""

    def run(self) -> None:
        """End with what to do instead."""
        sys.exit('An editable install would lack the interfaces. "make build" and "colcon build '
                 '--symlink-install" give installations in which edits are live.')


class BinaryDistribution(Distribution):
    """A wheel of this platform and Python: it holds compiled interfaces."""

    def has_ext_modules(self) -> bool:
        """Return True though setuptools compiles nothing itself."""
        return True


setup(
    license='Apache-2.0',
    packages=[],
    distclass=BinaryDistribution,
    cmdclass={'build': CMakeBuild, 'editable_wheel': NoEditable},
)
