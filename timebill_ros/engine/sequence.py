# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""One query's state in the engine."""

from dataclasses import dataclass, field
from typing import Any, Callable, Optional

from torch import Tensor

from timebill_ros.engine.sampling import Sampler
from timebill_ros.engine.snapkv import QueryWindow


@dataclass
class Sequence:
    """A prompt on its way through prefill, eviction and decoding; only ``Engine`` changes it."""

    slot: int                                # of the KV cache
    prompt: list[int]
    capacity: int                            # tokens it may reach, prompt and response
    sampler: Sampler
    window: QueryWindow                      # queries for SnapKV
    ids: Tensor                              # the prompt again, int64 on the host, pinned for CUDA
    n_prefilled: int = 0                     # prompt tokens done
    under_way: Any = None                    # of a chunk that takes several calls; the prefill's
    kept: int = 0                            # prompt positions in the cache
    # SnapKV's scores of the prompt entries in the cache but the window,
    # [n_layers, n_kv_heads, kept - w]; None until they are asked for
    scores: Optional[Tensor] = None
    logits: Optional[Tensor] = None          # after the prefill, until the first token is chosen
    prompt_state: Optional[Tensor] = None    # float32 [d_model], see ``Engine.prompt_state``
    # On CUDA: what to do when ``prompt_state``, and when ``logits``, are on their way on the
    # device, before the wait for them. First of all the first token is chosen.
    state_submitted: Callable[['Sequence'], None] = lambda seq: None
    submitted: Callable[['Sequence'], None] = lambda seq: None
    choose_first: Callable[['Sequence'], None] = lambda seq: None
    tokens: list[int] = field(default_factory=list)    # the response so far
    begun: bool = False                      # a device that keeps its own state knows of it
    closed: bool = False

    @property
    def n_prompt(self) -> int:
        """Length of the prompt in tokens (N_x)."""
        return len(self.prompt)

    @property
    def prefill_done(self) -> bool:
        """Tell whether the whole prompt is in the cache."""
        return self.n_prefilled == len(self.prompt)
