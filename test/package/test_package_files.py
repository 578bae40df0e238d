# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""package.xml, the versions, and what a source distribution holds."""

from pathlib import Path
import re
import subprocess
import sys
import tarfile

from catkin_pkg.package import Package, parse_package
import pytest

import timebill_ros

ROOT = Path(__file__).resolve().parents[2]

# Keys of rosdep's database that resolve to a Debian package on Ubuntu 24.04 (the ROS packages:
# ros-<distro>-...). Add one only after looking it up there; keys that resolve to pip do not count,
# because the system Python of a robot takes no packages from pip.
DEBIAN_KEYS = {
    'action_msgs', 'ament_cmake', 'ament_cmake_pytest', 'ament_cmake_python', 'ament_index_python',
    'builtin_interfaces', 'diagnostic_msgs', 'launch', 'launch_pytest', 'launch_ros',
    'python3-matplotlib', 'python3-numpy', 'python3-pytest', 'python3-venv', 'python3-yaml',
    'rcl_interfaces', 'rclpy', 'rosidl_default_generators', 'rosidl_default_runtime', 'std_msgs',
    'unique_identifier_msgs',
}


@pytest.fixture(scope='module')
def package() -> Package:
    return parse_package(ROOT / 'package.xml')


def test_package_xml_is_valid(package: Package) -> None:
    warnings: list[str] = []
    package.validate(warnings)
    assert not warnings
    assert (package.name, package.package_format) == ('timebill_ros', 3)
    assert package.get_build_type() == 'ament_cmake'
    assert [group.name for group in package.member_of_groups] == ['rosidl_interface_packages']


def test_rosdep_finds_every_dependency_among_debian_packages(package: Package) -> None:
    names = {
        dependency.name for kind in (
            package.build_depends, package.buildtool_depends, package.build_export_depends,
            package.exec_depends, package.test_depends)
        for dependency in kind}
    assert names <= DEBIAN_KEYS


def test_every_ros_package_that_is_imported_is_a_dependency(package: Package) -> None:
    code = '\n'.join(path.read_text(encoding='utf-8') for place in ('timebill_ros', 'launch')
                     for path in (ROOT / place).rglob('*.py'))
    imported = set(re.findall(r'^\s*(?:from|import) (\w+)', code, re.MULTILINE))
    ros = {name for name in DEBIAN_KEYS if not name.startswith('python3-')}
    assert imported & ros <= {each.name for each in package.exec_depends}


def test_versions_agree(package: Package) -> None:
    changelog = (ROOT / 'CHANGELOG.rst').read_text(encoding='utf-8')
    newest = re.search(r'^(\d+\.\d+\.\d+) \(', changelog, re.MULTILINE)
    assert newest is not None
    assert package.version == timebill_ros.__version__ == newest.group(1)


def test_cmake_names_every_interface() -> None:
    cmake = (ROOT / 'CMakeLists.txt').read_text(encoding='utf-8')
    named = set(re.findall(r'"((?:action|msg|srv)/\w+\.\w+)"', cmake))
    there = {f'{path.parent.name}/{path.name}'
             for kind in ('action', 'msg', 'srv') for path in (ROOT / kind).glob(f'*.{kind}')}
    assert named == there


def test_source_distribution_holds_what_a_build_needs(source: Path, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, '-c', 'import sys, setuptools.build_meta as backend\n'
         'backend.build_sdist(sys.argv[1])', str(tmp_path)],
        cwd=source, check=True, capture_output=True, timeout=60)
    archive, = tmp_path.glob('*.tar.gz')
    with tarfile.open(archive) as tar:
        names = {name.split('/', 1)[1] for name in tar.getnames() if '/' in name}
    needed = {'CMakeLists.txt', 'package.xml', 'LICENSE', 'action/Query.action',
              'msg/QueryTiming.msg', 'cmake/executable.py.in', 'requirements/engine.txt',
              'launch/timebill.launch.py', 'timebill_ros/query.py'}
    assert needed <= names
