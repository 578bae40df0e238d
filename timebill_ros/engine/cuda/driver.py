# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Loads compiled kernels and launches them on torch's current stream through the CUDA driver."""

import ctypes
from typing import Iterable

import torch

from timebill_ros.engine.cuda.tuning import Limits
from timebill_ros.engine.errors import EngineError

_MAX_DYNAMIC_SHARED_BYTES = 8            # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_NOT_FOUND = 500                         # CUDA_ERROR_NOT_FOUND
_COOPERATIVE = 2                         # CU_LAUNCH_ATTRIBUTE_COOPERATIVE


def device_limits(device: torch.device) -> Limits:
    """Return what a GPU offers to a block."""
    properties = torch.cuda.get_device_properties(device)
    return Limits(properties.multi_processor_count, properties.shared_memory_per_block_optin)


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
    """The kernels of some modules, by name, on one device."""

    def __init__(self, cubins: Iterable[bytes], device: torch.device) -> None:
        """Load the modules."""
        torch.cuda.current_stream(device).synchronize()   # torch makes its context current
        self._driver = ctypes.CDLL('libcuda.so.1')
        self._device = device
        self._modules: list[ctypes.c_void_p] = []
        for cubin in cubins:
            module = ctypes.c_void_p()
            self._check(self._driver.cuModuleLoadData(ctypes.byref(module), cubin))
            self._modules.append(module)
        self._functions: dict[str, ctypes.c_void_p] = {}
        self._shared_bytes: dict[str, int] = {}

    def launch(self, name: str, grid: tuple[int, int, int], threads: int, shared_bytes: int,
               arguments: ctypes.Structure, cooperative: bool = False) -> None:
        """
        Put a kernel into the current stream (or the graph that it captures).

        The blocks of a ``cooperative`` kernel, which wait for each other, all run at once.
        """
        function = self._function(name, shared_bytes)
        attribute = _Attribute(id=_COOPERATIVE, value=1)
        config = _LaunchConfig(
            grid=grid, block=(threads, 1, 1), shared_bytes=shared_bytes,
            stream=torch.cuda.current_stream(self._device).cuda_stream,
            attributes=ctypes.pointer(attribute), n_attributes=int(cooperative))
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        self._check(self._driver.cuLaunchKernelEx(ctypes.byref(config), function, parameters, None))

    def _function(self, name: str, shared_bytes: int) -> ctypes.c_void_p:
        if name not in self._functions:
            self._functions[name] = self._find(name)
            self._shared_bytes[name] = 0
        if shared_bytes > self._shared_bytes[name]:
            self._check(self._driver.cuFuncSetAttribute(
                self._functions[name], _MAX_DYNAMIC_SHARED_BYTES, shared_bytes))
            self._shared_bytes[name] = shared_bytes
        return self._functions[name]

    def _find(self, name: str) -> ctypes.c_void_p:
        function, code = ctypes.c_void_p(), 0
        for module in self._modules:
            code = self._driver.cuModuleGetFunction(ctypes.byref(function), module, name.encode())
            if code != _NOT_FOUND:
                break
        self._check(code)
        return function

    def _check(self, code: int) -> None:
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(text))
            raise EngineError(f'CUDA driver error {code}: {(text.value or b"").decode()}')
