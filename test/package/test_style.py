# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Style: flake8 as ament's, docstrings and annotations, licence headers, well-formed XML."""

import ast
from collections.abc import Iterator
from pathlib import Path
import subprocess
import sys
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
CODE = ('timebill_ros', 'test', 'launch', 'examples', 'benchmarks', 'tools', 'setup.py')
HEADER = ['# Copyright 2026 timebill_ros contributors', '# SPDX-License-Identifier: Apache-2.0']
COMMENTED = ('*.py', '*.sh', '*.cmake', '*.yaml', '*.yml', 'CMakeLists.txt', 'Makefile')


def _code() -> list[str]:
    return [place for place in CODE if (ROOT / place).exists()]


def _files(*patterns: str) -> Iterator[Path]:
    for place in ['.', *_code(), 'cmake', 'config']:
        path = ROOT / place
        for pattern in patterns:
            yield from path.glob(pattern) if place == '.' else path.rglob(pattern)


def _lint(*command: str) -> None:
    """Run a linter of this interpreter over the source tree; fail with what it finds."""
    done = subprocess.run(
        [sys.executable, '-m', *command], cwd=ROOT, capture_output=True, text=True, timeout=120)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)


def test_flake8() -> None:
    _lint('flake8', '--no-show-source', *_code())


def test_docstrings_and_annotations() -> None:
    _lint('ruff', 'check', '--no-cache', '--output-format', 'concise', *_code())


def test_every_file_names_its_licence() -> None:
    bare = []
    for path in _files(*COMMENTED):
        lines = path.read_text(encoding='utf-8').splitlines()
        if lines and lines[0].startswith('#!'):
            lines = lines[1:]
        if lines and lines[:2] != HEADER:
            bare.append(str(path.relative_to(ROOT)))
    assert not bare


def test_xml_is_well_formed() -> None:
    for path in _files('*.xml'):
        ElementTree.parse(path)


def test_nothing_is_left_for_later() -> None:
    markers = ['TO' + 'DO', 'FIX' + 'ME', 'X' + 'XX']
    found = [f'{path.relative_to(ROOT)}: {marker}' for path in _files('*.py')
             for marker in markers if marker in path.read_text(encoding='utf-8')]
    assert not found


@pytest.mark.parametrize('place', ['timebill_ros', 'launch', 'setup.py'])
def test_it_is_python_3_10(place: str) -> None:
    """The oldest Python that is supported can at least read every file."""
    root = ROOT / place
    for path in [root] if root.is_file() else root.rglob('*.py'):
        ast.parse(path.read_text(encoding='utf-8'), str(path), feature_version=(3, 10))
