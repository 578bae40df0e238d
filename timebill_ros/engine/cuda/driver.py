# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Loads compiled kernels and launches them on torch's current stream through the CUDA driver."""

import ctypes
from typing import Dict, List, Optional, Tuple

import torch

from timebill_ros.engine.cuda.tuning import Limits
from timebill_ros.engine.errors import EngineError

_MAX_DYNAMIC_SHARED_BYTES = 8            # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_PROGRAMMATIC_SERIALIZATION = 6          # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
_PROGRAMMATIC_SINCE = (9, 0)             # compute capability


def device_limits(device: torch.device) -> Limits:
    """Return what a GPU offers to a block."""
    properties = torch.cuda.get_device_properties(device)
    return Limits(properties.multi_processor_count, properties.shared_memory_per_block_optin)


def one_block_per_sm(device: torch.device) -> int:
    """Return the shared memory that a block must claim to have a multiprocessor for itself."""
    properties = torch.cuda.get_device_properties(device)
    return min(properties.shared_memory_per_multiprocessor // 2 + 1024,
               properties.shared_memory_per_block_optin)


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: an id and a 64-byte union, of which the first int is used."""

    _fields_ = [('id', ctypes.c_int), ('pad', ctypes.c_int), ('value', ctypes.c_int),
                ('rest', ctypes.c_byte * 60)]


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [('grid', ctypes.c_uint * 3), ('block', ctypes.c_uint * 3),
                ('shared_bytes', ctypes.c_uint), ('stream', ctypes.c_void_p),
                ('attributes', ctypes.POINTER(_Attribute)), ('n_attributes', ctypes.c_uint)]


class Kernels:
    """The kernels of one module, by name, on one device."""

    def __init__(self, cubin: bytes, device: torch.device, overlap: bool = True,
                 shared_floor_bytes: Optional[int] = None) -> None:
        """
        Load the module; ``overlap`` lets each kernel start while the one before it runs.

        Every block claims ``shared_floor_bytes`` of shared memory at least. With more than half
        of a multiprocessor's (None), one block of the next kernel follows on each multiprocessor
        as the last one ends there; with less, blocks pile up on some and leave others empty.
        """
        torch.cuda.current_stream(device).synchronize()   # torch makes its context current
        self._driver = ctypes.CDLL('libcuda.so.1')
        self._device = device
        self.shared_floor_bytes = (
            one_block_per_sm(device) if shared_floor_bytes is None else shared_floor_bytes)
        self.overlap = overlap and torch.cuda.get_device_capability(device) >= _PROGRAMMATIC_SINCE
        self._module = ctypes.c_void_p()
        self._check(self._driver.cuModuleLoadData(ctypes.byref(self._module), cubin))
        self._functions: Dict[str, ctypes.c_void_p] = {}
        self._shared_bytes: Dict[str, int] = {}

    def launch(self, name: str, grid: Tuple[int, int, int], threads: int, shared_bytes: int,
               arguments: ctypes.Structure) -> None:
        """Put a kernel into the current stream (or the graph that it captures)."""
        shared_bytes = max(shared_bytes, self.shared_floor_bytes)
        function = self._function(name, shared_bytes)
        attribute = _Attribute(id=_PROGRAMMATIC_SERIALIZATION, value=1)
        config = _LaunchConfig(
            grid=grid, block=(threads, 1, 1), shared_bytes=shared_bytes,
            stream=torch.cuda.current_stream(self._device).cuda_stream,
            attributes=ctypes.pointer(attribute), n_attributes=int(self.overlap))
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        self._check(self._driver.cuLaunchKernelEx(ctypes.byref(config), function, parameters, None))

    def resources(self, name: str) -> List[int]:
        """Return registers and bytes of local memory per thread (CU_FUNC_ATTRIBUTE 4 and 3)."""
        values = []
        for attribute in (4, 3):
            value = ctypes.c_int()
            self._check(self._driver.cuFuncGetAttribute(
                ctypes.byref(value), attribute, self._function(name, 0)))
            values.append(value.value)
        return values

    def _function(self, name: str, shared_bytes: int) -> ctypes.c_void_p:
        if name not in self._functions:
            function = ctypes.c_void_p()
            self._check(self._driver.cuModuleGetFunction(
                ctypes.byref(function), self._module, name.encode()))
            self._functions[name] = function
            self._shared_bytes[name] = 0
        if shared_bytes > self._shared_bytes[name]:
            self._check(self._driver.cuFuncSetAttribute(
                self._functions[name], _MAX_DYNAMIC_SHARED_BYTES, shared_bytes))
            self._shared_bytes[name] = shared_bytes
        return self._functions[name]

    def _check(self, code: int) -> None:
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(text))
            raise EngineError(f'CUDA driver error {code}: {(text.value or b"").decode()}')
