# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the kernels read and write beside weights and cache: per slot, per row, and scratch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from timebill_ros.engine.cuda.variants import MAX_BATCH, MAX_GROUP


@dataclass
class BatchState:
    """Device tensors with fixed addresses, so that captured graphs can use them."""

    # Per slot (one slot holds one sequence).
    lengths: Tensor         # int32 [slots], cached tokens
    positions: Tensor       # int32 [slots], logical position of the next token
    tokens: Tensor          # int32 [slots], the token that the next step takes in
    temperature: Tensor     # float32 [slots], 0: greedy
    top_k: Tensor           # int32 [slots], 0: off
    top_p: Tensor           # float32 [slots], 1: off
    penalty: Tensor         # float32 [slots], repetition penalty, 1: off
    seed: Tensor            # int64 [slots]
    seen: Tensor            # uint8 [slots, vocabulary], tokens of prompt and response
    # Per row of the batch.
    slot_of_row: Tensor     # int32 [MAX_BATCH], -1: nobody
    # int32 [MAX_BATCH, 2], the step's tokens by row and position % 2; on a GPU in the host's memory
    chosen: Tensor
    logits: Tensor          # float32 [MAX_BATCH, vocabulary], after the penalty
    # Scratch.
    best_value: Tensor      # float32 [MAX_BATCH * blocks]
    best_index: Tensor      # int32 [MAX_BATCH * blocks]
    partial: Tensor         # float32, see attention.cuh
    counters: Tensor        # int32 [1 + MAX_BATCH * kv_heads], barriers; zero between steps


def allocate_state(n_slots: int, vocabulary: int, kv_heads: int, head_dim: int, splits: int,
                   blocks: int, device: torch.device) -> BatchState:
    """Reserve it for at most ``splits`` stretches of attention in all rows, and these blocks."""
    def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=device)

    return BatchState(
        lengths=zeros(n_slots), positions=zeros(n_slots), tokens=zeros(n_slots),
        temperature=zeros(n_slots, dtype=torch.float32), top_k=zeros(n_slots),
        top_p=torch.ones(n_slots, device=device), penalty=torch.ones(n_slots, device=device),
        seed=zeros(n_slots, dtype=torch.int64),
        seen=zeros(n_slots, vocabulary, dtype=torch.uint8),
        slot_of_row=torch.full((MAX_BATCH,), -1, dtype=torch.int32, device=device),
        chosen=zeros(MAX_BATCH, 2), logits=zeros(MAX_BATCH, vocabulary, dtype=torch.float32),
        best_value=zeros(MAX_BATCH * blocks, dtype=torch.float32),
        best_index=zeros(MAX_BATCH * blocks),
        partial=zeros(kv_heads * splits * MAX_GROUP * (head_dim + 2),
                      dtype=torch.float32),
        counters=zeros(1 + MAX_BATCH * kv_heads))
