# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Compiles the C++ of the CPU steps once per machine, for the very processor it will run on."""

import ctypes
import hashlib
import os
from pathlib import Path
import platform
import shutil
import subprocess
from typing import List, Optional

from timebill_ros.engine.errors import EngineError

_KERNELS = Path(__file__).parent / 'kernels'
_OPTIONS = ['-std=c++17', '-O3', '-march=native', '-ffp-contract=fast', '-fPIC', '-shared',
            '-pthread', '-Wno-psabi']
_LIMIT_S = 300.0


class NoCompiler(EngineError):
    """The steps cannot be compiled on this machine; the message says what is missing."""


def library(cache: Path) -> ctypes.CDLL:
    """
    Return the compiled steps, from ``cache`` where this machine has compiled them before.

    $CXX names the compiler, else it is g++ or clang++. Raises NoCompiler.
    """
    compiler = find_compiler()
    if compiler is None:
        raise NoCompiler('no C++ compiler ($CXX, g++ or clang++); install g++')
    digest = hashlib.sha256(f'{compiler} {_version(compiler)} {_OPTIONS} {_processor()}'.encode())
    for file in sorted(_KERNELS.iterdir()):
        digest.update(file.read_bytes())
    path = cache / f'cpu-{digest.hexdigest()[:24]}.so'
    try:
        if not path.is_file():
            cache.mkdir(parents=True, exist_ok=True)
            compile_steps(compiler, sources(), _OPTIONS, path)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoCompiler(f'the compiled steps cannot be loaded: {error}') from error


def sources() -> List[Path]:
    """Return the files to compile."""
    return sorted(_KERNELS.glob('*.cpp'))


def find_compiler() -> Optional[str]:
    """Return the path of a C++ compiler, or None."""
    for name in (os.environ.get('CXX', ''), 'g++', 'clang++'):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def compile_steps(compiler: str, files: List[Path], options: List[str], path: Path) -> None:
    """Compile into ``path``, which appears whole or not at all; raises NoCompiler."""
    partial = path.with_suffix(f'.{os.getpid()}')
    command = [compiler, *options, *(str(file) for file in files), '-o', str(partial)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S)
        if done.returncode != 0:
            raise NoCompiler(f'{compiler} failed: {_first_error(done.stderr)}')
        partial.replace(path)
    except subprocess.TimeoutExpired as error:
        raise NoCompiler(f'{compiler} took more than {_LIMIT_S:.0f} s') from error
    finally:
        partial.unlink(missing_ok=True)


def _first_error(text: str) -> str:
    lines = [line for line in text.splitlines() if 'error' in line]
    return (lines or text.splitlines() or ['no message'])[0]


def _version(compiler: str) -> str:
    """Return what tells two releases of the compiler apart."""
    return subprocess.run([compiler, '-dumpfullversion', '-dumpversion'], capture_output=True,
                          text=True, check=False).stdout.strip()


def _processor() -> str:
    """Return what -march=native depends on: a cache may travel to another machine."""
    found = {platform.machine()}
    for line in Path('/proc/cpuinfo').read_text(errors='replace').splitlines():
        name, _, value = line.partition(':')
        if name.strip() in ('model name', 'flags', 'Features', 'CPU part'):
            found.add(value.strip())
    return ' '.join(sorted(found))
