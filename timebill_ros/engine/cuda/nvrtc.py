# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Compiles CUDA source with NVRTC, which torch's CUDA wheels bring along: no nvcc is needed."""

from concurrent.futures import ThreadPoolExecutor
import ctypes
import glob
import hashlib
import os
from pathlib import Path
from typing import Iterator, Sequence

from timebill_ros.engine.errors import EngineError

_CACHE_VERSION = 1


class CompileError(EngineError):
    """The kernels could not be compiled; the message carries the compiler's log."""


def compile_cubins(sources: Sequence[str], architecture: str, cache: Path) -> list[bytes]:
    """Compile several sources side by side; see ``compile_cubin``."""
    with ThreadPoolExecutor(min(len(sources), os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda source: compile_cubin(source, architecture, cache), sources))


def compile_cubin(source: str, architecture: str, cache: Path) -> bytes:
    """
    Return machine code for ``architecture`` (``sm_90``), from the cache where it is there.

    Compiling takes some seconds per kernel; the cache makes later starts immediate.
    """
    library = _library()
    key = hashlib.sha256(
        f'{_CACHE_VERSION} {architecture} {_version(library)} {source}'.encode()).hexdigest()[:24]
    path = cache / f'kernels-{architecture}-{key}.cubin'
    if path.is_file():
        return path.read_bytes()
    cubin = _compile(library, source, [f'--gpu-architecture={architecture}', '--std=c++17'])
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f'.{os.getpid()}')
    partial.write_bytes(cubin)
    partial.replace(path)
    return cubin


def _compile(library: ctypes.CDLL, source: str, options: list[str]) -> bytes:
    program = ctypes.c_void_p()
    _check(library, library.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b'timebill.cu', 0, None, None))
    try:
        arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = library.nvrtcCompileProgram(program, len(options), arguments)
        if failed:
            raise CompileError(f'NVRTC: {_log(library, program)}')
        size = ctypes.c_size_t()
        _check(library, library.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        cubin = ctypes.create_string_buffer(size.value)
        _check(library, library.nvrtcGetCUBIN(program, cubin))
        return cubin.raw
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _log(library: ctypes.CDLL, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, text)
    return text.value.decode(errors='replace')


def _check(library: ctypes.CDLL, code: int) -> None:
    if code:
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise CompileError(f'NVRTC: {library.nvrtcGetErrorString(code).decode()}')


def _version(library: ctypes.CDLL) -> str:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library, library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f'{major.value}.{minor.value}'


def _library() -> ctypes.CDLL:
    tried = []
    for name in _candidates():
        try:
            return load_nvrtc(name)
        except OSError:
            tried.append(name)
    raise CompileError(f'no NVRTC library found (tried {", ".join(tried)}); '
                       "it comes with torch's CUDA wheels and with the CUDA toolkit")


def load_nvrtc(name: str) -> ctypes.CDLL:
    """Load NVRTC, and first the built-ins that lie beside it but that it may not find."""
    for builtins in sorted(Path(name).parent.glob('libnvrtc-builtins.so.*')):
        if '.alt.' not in builtins.name:
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(name)


def _candidates() -> Iterator[str]:
    """Libraries of torch's own CUDA version first, in its wheels, then where the loader looks."""
    import torch
    major = (torch.version.cuda or '13').split('.')[0]
    site = Path(torch.__file__).parent.parent
    for pattern in (f'nvidia/cu{major}/lib', 'nvidia/cuda_nvrtc/lib', 'torch/lib'):
        yield from sorted(glob.glob(str(site / pattern / f'libnvrtc.so.{major}')))
    yield f'libnvrtc.so.{major}'
    yield from (f'{root}/lib64/libnvrtc.so' for root in
                (os.environ.get('CUDA_HOME'), '/usr/local/cuda') if root)
    yield 'libnvrtc.so'
