# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The KV cache: one block of memory with fixed addresses in slots; one slot holds one sequence."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from timebill_ros.engine.config import ModelConfig

# Memory that an eviction takes for a moment; on a CPU what its caches hold.
_MOVED_AT_ONCE_BYTES = {'cpu': 4 * 1024 ** 2, 'cuda': 256 * 1024 ** 2}


@dataclass
class KVCache:
    """
    Keys (rotated) and values, head-major: [n_layers, n_slots, n_kv_heads, capacity, head_dim].

    The addresses never change, so a captured graph can use them. ``length`` counts the entries in
    use of a slot (physical), ``position`` is the position of its next token (logical); they differ
    once entries were evicted.
    """

    k: Tensor
    v: Tensor
    length: list[int] = field(default_factory=list)      # per slot, entries
    position: list[int] = field(default_factory=list)    # per slot, tokens

    @property
    def capacity(self) -> int:
        """Entries that one slot can hold."""
        return self.k.shape[3]

    @property
    def n_slots(self) -> int:
        """Sequences that can be held at once."""
        return self.k.shape[1]

    def reset(self, slot: int) -> None:
        """Forget the sequence of a slot."""
        self.length[slot] = 0
        self.position[slot] = 0

    def append(self, layer: int, slot: int, k: Tensor, v: Tensor) -> None:
        """Write ``k``, ``v`` [n_kv_heads, M, head_dim] behind what is in use; not counted yet."""
        start = self.length[slot]
        end = start + k.shape[1]
        self.k[layer, slot, :, start:end] = k
        self.v[layer, slot, :, start:end] = v

    def advance(self, slot: int, count: int) -> None:
        """Count ``count`` entries that every layer has appended."""
        self.length[slot] += count
        self.position[slot] += count

    def write_noise(self, slot: int, start: int, end: int) -> None:
        """Write random numbers into the entries from ``start`` to ``end``; nothing is counted."""
        for cache in (self.k, self.v):
            cache[:, slot, :, start:end].normal_()

    def keep(self, slot: int, entries: Tensor) -> None:
        """
        Keep the ``entries`` [n_layers, n_kv_heads, kept], ascending, moved to the front in place.

        The logical position stays: keys remain rotated by the positions they were written with.
        """
        n_layers, n_slots, n_heads, capacity, _ = self.k.shape
        kept = entries.shape[2]
        for cache in (wide(self.k), wide(self.v)):
            rows = cache.view(-1, cache.shape[-1])
            layer_bytes = n_heads * kept * cache.shape[-1] * cache.element_size()
            step = max(1, _MOVED_AT_ONCE_BYTES[cache.device.type] // max(1, layer_bytes))
            for first in range(0, n_layers, step):
                part = entries[first:first + step]
                heads = torch.arange(n_heads, device=part.device)
                layers = torch.arange(first, first + len(part), device=part.device)
                base = ((layers[:, None] * n_slots + slot) * n_heads + heads) * capacity
                cache[first:first + len(part), slot, :, :kept] = rows[base[:, :, None] + part]
        self.length[slot] = kept


def wide(cache: Tensor) -> Tensor:
    """Return the same memory in the widest elements that fit a head: they are moved faster."""
    for dtype in (torch.complex128, torch.int64, torch.int32):
        if cache.shape[-1] * cache.element_size() % dtype.itemsize == 0:
            return cache.view(dtype)
    return cache


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Return the memory that one cached token takes over all layers."""
    return config.kv_values_per_token * dtype.itemsize


def allocate(config: ModelConfig, n_slots: int, capacity: int, dtype: torch.dtype,
             device: torch.device) -> KVCache:
    """
    Reserve a cache. On a CPU the memory is only taken when it is first written.

    On CUDA it begins with zeros: attention may look at, and weigh with 0, entries not written yet.
    """
    shape = (config.n_layers, n_slots, config.n_kv_heads, capacity, config.head_dim)
    reserve = torch.empty if device.type == 'cpu' else torch.zeros
    return KVCache(
        k=reserve(shape, dtype=dtype, device=device),
        v=reserve(shape, dtype=dtype, device=device),
        length=[0] * n_slots, position=[0] * n_slots)
