# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Builds the CUDA kernels for the CPU emulator and calls them on CPU tensors."""

import ctypes
from pathlib import Path
import subprocess
from typing import Callable


class EmulatedKernels:
    """Has the launch method of ``engine.cuda.driver.Kernels``; runs on the CPU."""

    def __init__(self, source: Callable[[str], str], directory: Path) -> None:
        """Compile ``source(emulator)`` with the host's C++ compiler."""
        emulator = (Path(__file__).parent / 'cuda_emulator.hpp').read_text(encoding='utf-8')
        code, library = directory / 'kernels.cpp', directory / 'kernels.so'
        code.write_text(source(emulator), encoding='utf-8')
        # where g++ checks jumps by default (Ubuntu), those from fiber to fiber count as faults
        subprocess.run(
            ['g++', '-std=c++17', '-O1', '-U_FORTIFY_SOURCE', '-w', '-shared', '-fPIC', str(code),
             '-o', str(library)], check=True)
        self._library = ctypes.CDLL(str(library))

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, shared_bytes: int,
               arguments: ctypes.Structure, cooperative: bool = False) -> None:
        """Run one kernel to its end."""
        getattr(self._library, name)(*grid, shared_bytes, ctypes.byref(arguments))
