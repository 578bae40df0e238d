# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How much KV cache there can be, and whether a sequence's part of it fits."""

import torch

from timebill_ros.engine.errors import OutOfMemory
from timebill_ros.engine.memory import available_bytes, gibibytes

_KEPT_FREE = 0.1        # share of the free memory that is left to activations and to others


class CacheMemory:
    """
    Counts the memory of one slot of the KV cache.

    On CUDA the cache is reserved whole. On a CPU its pages are taken as they are first written, so
    that a long context costs nothing until it is used; what is free then is looked up each time.
    """

    def __init__(self, device: torch.device, token_bytes: int, limit_bytes: int) -> None:
        """Take ``token_bytes`` per cached token and a limit in bytes, 0 for what is free."""
        self.token_bytes = token_bytes
        self._device = device
        self._limit_bytes = limit_bytes
        self._capacity = 0
        self._written_tokens = 0        # the most that were ever cached: on a CPU, pages we have

    @property
    def written_tokens(self) -> int:
        """Entries from the front that have been written at least once."""
        return self._written_tokens

    def wrote(self, n_tokens: int) -> None:
        """Take note that the first ``n_tokens`` entries have been written."""
        self._written_tokens = max(self._written_tokens, n_tokens)

    def reserve(self, max_context: int) -> int:
        """Return the tokens to reserve the cache for: the context, or what the memory holds."""
        limit = self._limit_bytes
        if self._device.type == 'cuda' and not limit:
            limit = int((1.0 - _KEPT_FREE) * available_bytes(self._device))
        self._capacity = min(max_context, limit // self.token_bytes) if limit else max_context
        if self._capacity < 1:
            raise OutOfMemory(f'the KV cache takes {self.token_bytes} bytes for each token; '
                              f'there are {limit}')
        return self._capacity

    def check(self, n_tokens: int) -> None:
        """Raise OutOfMemory if a sequence of ``n_tokens``, prompt and response, does not fit."""
        need, have = n_tokens * self.token_bytes, self._capacity * self.token_bytes
        if self._device.type == 'cpu' and need <= have:
            ours = self._written_tokens * self.token_bytes
            have = min(have, ours + int((1.0 - _KEPT_FREE) * available_bytes(self._device)))
        if need > have:
            source = 'kv_memory_bytes allows' if self._limit_bytes else 'there are'
            raise OutOfMemory(f'{n_tokens} tokens of prompt and response need {gibibytes(need)} '
                              f'of KV cache; {source} {gibibytes(have)}')
