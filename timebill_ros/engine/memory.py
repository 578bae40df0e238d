# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How much memory there is, and the out-of-memory errors of torch as one exception."""

from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

import torch

from timebill_ros.engine.errors import OutOfMemory

_CGROUP = Path('/sys/fs/cgroup')


def available_bytes(device: torch.device) -> int:
    """Return the memory that can still be taken on a device; of a CPU, within our control group."""
    if device.type == 'cuda':
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    for line in Path('/proc/meminfo').read_text().splitlines():
        if line.startswith('MemAvailable:'):
            available = int(line.split()[1]) * 1024
            limited = _cgroup_available()
            return available if limited is None else min(available, limited)
    raise RuntimeError('/proc/meminfo has no MemAvailable')


def usable_bytes(device: torch.device, gpu_memory_fraction: float) -> int:
    """
    Return the memory that the engine may still take.

    Of a GPU that is what is free less the share that is to stay with others.
    """
    if device.type != 'cuda':
        return available_bytes(device)
    _, total = torch.cuda.mem_get_info(device)
    return max(0, available_bytes(device) - int((1.0 - gpu_memory_fraction) * total))


def _cgroup_available() -> Optional[int]:
    try:
        limit = (_CGROUP / 'memory.max').read_text().strip()
        used = int((_CGROUP / 'memory.current').read_text())
        stat = dict(line.split() for line in (_CGROUP / 'memory.stat').read_text().splitlines())
    except OSError:
        return None
    return None if limit == 'max' else max(0, int(limit) - used + int(stat.get('inactive_file', 0)))


def gibibytes(count: int) -> str:
    """Return a count of bytes for people."""
    return f'{count / 1024 ** 3:.2f} GiB'


@contextmanager
def out_of_memory_as_ours(what: str, device: torch.device) -> Iterator[None]:
    """Turn torch's out-of-memory errors into OutOfMemory and give back what its allocator holds."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and 'allocate memory' not in str(error):
            raise
        if device.type == 'cuda':
            torch.cuda.empty_cache()
        reason = str(error).splitlines()[0] if str(error) else 'no memory'
        free = gibibytes(available_bytes(device))
        raise OutOfMemory(f'{what}: {reason}; {free} are free') from error
