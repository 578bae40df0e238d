# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Compiles the C++ of the CPU steps once per machine, for the very processor it will run on."""

import contextlib
import ctypes
import hashlib
import logging
import os
from pathlib import Path
import platform
import shutil
import subprocess
import tempfile
from typing import Optional

from timebill_ros.engine.errors import EngineError

_KERNELS = Path(__file__).parent / 'kernels'
_OPTIONS = ['-std=c++17', '-O3', '-ffp-contract=fast', '-fPIC', '-shared', '-pthread',
            '-Wno-psabi']
_LIMIT_S = 300.0
_LOG = logging.getLogger(__name__)


class NoCompiler(EngineError):
    """The steps cannot be compiled on this machine; the message says what is missing."""


def library(cache: Path) -> ctypes.CDLL:
    """
    Return the compiled steps, from ``cache`` where this machine has compiled them before.

    Where nothing can be kept or run from there (read-only, full, noexec) they are compiled at every
    start. $CXX names the compiler, else it is g++ or clang++. Raises NoCompiler.
    """
    compiler = find_compiler()
    if compiler is None:
        raise NoCompiler('no C++ compiler ($CXX, g++ or clang++); install g++')
    try:
        kept = cache / f'cpu-{_digest(compiler)[:24]}.so'
        with contextlib.suppress(OSError):      # a file cut short by a power failure is made anew
            return ctypes.CDLL(str(kept))
        try:
            cache.mkdir(parents=True, exist_ok=True)
            compile_steps(compiler, sources(), _options(), kept)
            return ctypes.CDLL(str(kept))
        except OSError as error:
            _LOG.warning('the compiled steps cannot be kept in %s and are compiled at every '
                         'start: %s', cache, error)
        with tempfile.TemporaryDirectory(prefix='timebill-') as directory:
            passing = Path(directory) / 'cpu.so'
            compile_steps(compiler, sources(), _options(), passing)
            return ctypes.CDLL(str(passing))    # stays when its file is gone
    except OSError as error:
        raise NoCompiler(f'the compiled steps cannot be loaded: {error}') from error


def sources() -> list[Path]:
    """Return the files to compile."""
    return sorted(_KERNELS.glob('*.cpp'))


def find_compiler() -> Optional[str]:
    """Return the path of a C++ compiler, or None."""
    for name in (os.environ.get('CXX', ''), 'g++', 'clang++'):
        found = shutil.which(name) if name else None
        if found:
            return found
    return None


def compile_steps(compiler: str, files: list[Path], options: list[str], path: Path) -> None:
    """Compile into ``path``, which appears whole or not at all; raises NoCompiler."""
    handle, name = tempfile.mkstemp(prefix='.', suffix='.so', dir=path.parent)
    os.close(handle)
    partial = Path(name)        # another engine's may be under way
    command = [compiler, *options, *(str(file) for file in files), '-o', name]
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


def _options() -> list[str]:
    """Return the options for this very processor; ARM's compilers call that -mcpu."""
    return [*_OPTIONS, '-march=native' if platform.machine() == 'x86_64' else '-mcpu=native']


def _digest(compiler: str) -> str:
    """Return a name for what comes out: it differs wherever that could."""
    made_of = f'{compiler} {_version(compiler)} {_options()} {_processor()}'
    digest = hashlib.sha256(made_of.encode())
    for file in sorted(_KERNELS.iterdir()):
        digest.update(file.read_bytes())
    return digest.hexdigest()


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
