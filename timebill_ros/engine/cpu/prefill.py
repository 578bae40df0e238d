# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The prefill in the compiled code of the decode steps, from the same packed weights."""


import torch

from timebill_ros.budget.kept import SNAPKV_WINDOW
from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cpu.steps import CompiledSteps
from timebill_ros.engine.cpu.structures import WINDOW
from timebill_ros.engine.eviction import Eviction, PlainEviction
from timebill_ros.engine.sequence import Sequence

assert WINDOW == SNAPKV_WINDOW


class CompiledPrefill:
    """Whole chunks, each one call (``engine.prefill.Prefill``)."""

    padded_lengths: list[int] = []
    attention_stair = 1

    def __init__(self, steps: CompiledSteps, config: ModelConfig, chunk_tokens: int,
                 tier: str = 'fp32') -> None:
        """Take steps that can prefill in a ``tier``, and the tokens of a chunk."""
        self.tier = tier
        self.eviction: Eviction = PlainEviction()
        self._steps = steps
        self._chunk_tokens = chunk_tokens
        self._queries = torch.zeros((config.n_layers, config.n_heads, WINDOW, config.head_dim))

    def begin(self, seq: Sequence) -> None:
        """Nothing can be on its way between two calls."""

    def advance(self, seq: Sequence, alone: bool = False) -> int:
        """Run the next chunk, as ``Prefill`` says."""
        ids = seq.prompt[seq.n_prefilled:seq.n_prefilled + self._chunk_tokens]
        left = seq.n_prompt - seq.n_prefilled
        scored = left <= self._chunk_tokens + WINDOW
        seq.logits, state = self._steps.prefill(
            seq.slot, ids, self._queries if scored else None, len(ids) == left,
            self.tier)
        if state is not None:
            seq.prompt_state = state
        if scored:
            for layer, queries in enumerate(self._queries[:, :, -min(len(ids), WINDOW):]):
                seq.window.push(layer, queries)
        return len(ids)

    def settle(self) -> None:
        """Nothing can be on its way between two calls."""
