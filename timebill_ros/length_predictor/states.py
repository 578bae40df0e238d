# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Hidden states of the target: what the probe reads."""

from typing import Sequence

import numpy as np
from numpy.typing import NDArray
import torch

from timebill_ros.length_predictor.target import batches_by_length, Target


@torch.inference_mode()
def read_states(
    target: Target,
    sequences: Sequence[Sequence[int]],
    positions: Sequence[Sequence[int]],
    layers: Sequence[int],
    mean_layer: int = 0,
    max_batch_tokens: int = 200_000,
) -> tuple[list[NDArray[np.float16]], NDArray[np.float16]]:
    """
    Run the target over whole sequences and return its states at chosen positions and layers.

    ``layers`` counts from 1: the output of that decoder layer, before any norm; the number of
    layers itself means the final state, after the final norm (what the language-model head reads).
    Returns per sequence an array [positions, layers, d_model], and the mean over the tokens up to
    a sequence's first position at the layer ``layers[mean_layer]``, [sequences, d_model].
    """
    d_model = target.model.config.hidden_size
    states: list[NDArray[np.float16]] = [np.zeros((0, 0, 0), np.float16)] * len(sequences)
    means = np.zeros((len(sequences), d_model), np.float16)
    decoder, device = target.model.get_decoder(), target.device
    for batch in batches_by_length([len(s) for s in sequences], 512, max_batch_tokens, 0):
        width = len(sequences[batch[0]])
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        for row, i in enumerate(batch):
            ids[row, : len(sequences[i])] = torch.tensor(sequences[i])
        hidden = decoder(
            input_ids=ids.to(device), use_cache=False, output_hidden_states=True
        ).hidden_states
        rows = torch.tensor(
            [row for row, i in enumerate(batch) for _ in positions[i]], device=device
        )
        at = torch.tensor([position for i in batch for position in positions[i]], device=device)
        picked = (
            torch.stack([hidden[layer][rows, at] for layer in layers], 1)
            .to(torch.float16)
            .cpu()
            .numpy()
        )
        ends = torch.tensor([positions[i][0] + 1 for i in batch], device=device)
        inside = torch.arange(width, device=device) < ends[:, None]
        total = torch.einsum('rwd,rw->rd', hidden[layers[mean_layer]].float(), inside.float())
        means[batch] = (total / ends[:, None]).to(torch.float16).cpu().numpy()
        start = 0
        for i in batch:
            states[i] = picked[start : start + len(positions[i])]
            start += len(positions[i])
    return states, means
