# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How much KV cache there can be, for how many sequences, and whether one more fits."""


import torch

from timebill_ros.engine.errors import OutOfMemory
from timebill_ros.engine.memory import available_bytes, gibibytes

MAX_BATCH = 8           # sequences that a decode step can serve
_KEPT_FREE = 0.1        # share of a CPU's free memory that is left to activations and to others


class CacheMemory:
    """
    Counts the memory of the KV cache, which has one slot for each sequence.

    On CUDA all slots are reserved whole. On a CPU their pages are taken as they are first written,
    so that a long context costs nothing until it is used; what is free then is looked up each time,
    less what the open sequences may still take.
    """

    def __init__(self, device: torch.device, token_bytes: int, limit_bytes: int,
                 free_bytes: int) -> None:
        """
        Take ``token_bytes`` per cached token, and the memory that there is for the cache.

        ``limit_bytes`` is the operator's limit (0 = none), ``free_bytes`` what the device has.
        """
        self.token_bytes = token_bytes
        self._device = device
        self._limit_bytes = limit_bytes
        self._free_bytes = free_bytes
        self._capacity = 0                      # tokens of one slot
        self._written: list[int] = []           # per slot, the most ever cached: pages we have
        self._held: dict[int, int] = {}         # by slot, tokens that its sequence may reach

    def reserve(self, max_context: int, max_batch: int) -> tuple[int, int]:
        """
        Return how many slots to reserve, and of how many tokens.

        Each slot holds the whole context, so there are as many (at most ``max_batch``) as the
        memory has room for; if it has not even for one, that one is shorter.
        """
        budget = self._limit_bytes or self._free_bytes
        if self._limit_bytes and self._device.type == 'cuda':
            budget = min(self._limit_bytes, self._free_bytes)
        self._capacity = min(max_context, budget // self.token_bytes)
        if self._capacity < 1:
            raise OutOfMemory(f'the KV cache takes {self.token_bytes} bytes for each token; '
                              f'there are {budget}')
        slots = budget // (self._capacity * self.token_bytes)
        if self._limit_bytes and self._device.type == 'cpu':
            slots = max_batch                   # of which the limit is shared as they fill
        slots = max(1, min(slots, max_batch, MAX_BATCH))
        self._written = [0] * slots
        return slots, self._capacity

    def written_tokens(self, slot: int) -> int:
        """Entries from a slot's front that have been written at least once."""
        return self._written[slot]

    def wrote(self, slot: int, n_tokens: int) -> None:
        """Take note that the first ``n_tokens`` entries of a slot have been written."""
        self._written[slot] = max(self._written[slot], n_tokens)

    def check(self, n_tokens: int) -> None:
        """Raise OutOfMemory if a sequence of ``n_tokens`` does not fit, were it the only one."""
        self._compare(n_tokens, self._have_bytes(max(range(len(self._written)),
                                                     key=self._written.__getitem__), {}))

    def fits(self, slot: int, n_tokens: int) -> bool:
        """Tell whether a sequence of ``n_tokens`` fits into a free slot beside those held."""
        return n_tokens * self.token_bytes <= self._have_bytes(slot, self._held)

    def hold(self, slot: int, n_tokens: int) -> None:
        """Count a sequence that may reach ``n_tokens``; raises OutOfMemory if it does not fit."""
        self._compare(n_tokens, self._have_bytes(slot, self._held))
        self._held[slot] = n_tokens

    def release(self, slot: int) -> None:
        """Count a sequence no more; on a CPU its pages stay with the slot."""
        self._held.pop(slot, None)

    def _have_bytes(self, slot: int, held: dict[int, int]) -> int:
        """Return the memory for a sequence in ``slot`` beside the sequences ``held``."""
        have = self._capacity * self.token_bytes
        if self._device.type != 'cpu':
            return have
        if self._limit_bytes:
            have = min(have, self._limit_bytes - sum(held.values()) * self.token_bytes)
        promised = sum(max(0, n - self._written[other]) for other, n in held.items())
        free = int((1.0 - _KEPT_FREE) * available_bytes(self._device))
        return min(have, free + (self._written[slot] - promised) * self.token_bytes)

    def _compare(self, n_tokens: int, have: int) -> None:
        need = n_tokens * self.token_bytes
        if need > have:
            source = 'kv_memory_bytes allows' if self._limit_bytes else 'there are'
            raise OutOfMemory(f'{n_tokens} tokens of prompt and response need {gibibytes(need)} '
                              f'of KV cache; {source} {gibibytes(max(0, have))}')
