# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Rotary position tables (RoFormer, arXiv 2104.09864) for every scaling that transformers knows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.errors import ModelError


@dataclass
class RopeTable:
    """Cosines and sines by logical position: [max_context, head_dim], float32, both halves."""

    cos: Tensor
    sin: Tensor


def rope_table(config: ModelConfig, max_context: int, device: torch.device) -> RopeTable:
    """
    Compute positions 0 .. max_context - 1 with the frequencies of transformers' functions.

    Raises ModelError for a scaling that the engine's rotation does not fit.
    """
    from transformers import Qwen3Config
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

    # One rotary module serves all four families; Qwen3's configuration is the one of theirs that
    # does not tie head_dim to d_model.
    try:
        rotary = Qwen3RotaryEmbedding(Qwen3Config(
            hidden_size=config.d_model, num_attention_heads=config.n_heads,
            head_dim=config.head_dim, rope_parameters=dict(config.rope),
            max_position_embeddings=config.rope_positions or config.max_positions))
        cos, sin = rotary(torch.zeros(1, dtype=torch.float32), torch.arange(max_context)[None])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:   # the last: sizes of factors
        raise ModelError(f'rotary scaling {config.rope} is not supported: {error!r}') from error
    if cos.shape[-1] != config.head_dim:
        raise ModelError(f'rotary scaling {config.rope} turns {cos.shape[-1]} of '
                         f'{config.head_dim} values; the engine turns whole heads')
    return RopeTable(cos=cos[0].to(device), sin=sin[0].to(device))


def sign_sin(sin: Tensor) -> Tensor:
    """Return ``sin`` [..., head_dim] with its first half negated, as ``rotate`` takes it."""
    half = sin.shape[-1] // 2
    return torch.cat((-sin[..., :half], sin[..., half:]), -1)


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """
    Rotate ``x`` [..., head_dim]; ``cos`` and ``signed_sin`` of its positions broadcast against it.

    With the sign in the table, rotate_half(x) * sin is one roll and one multiply-add.
    """
    return torch.addcmul(x * cos, torch.roll(x, x.shape[-1] // 2, -1), signed_sin)
