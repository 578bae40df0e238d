# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A language model with a classification head over prompts: the paper's, and the baselines."""

from typing import Any, Iterator

import torch
from torch import nn, Tensor

_LORA_TARGETS = ('q_proj', 'k_proj', 'v_proj', 'o_proj', 'gate_proj', 'up_proj', 'down_proj')


class LowRank(nn.Module):
    """A frozen linear layer plus a trained low-rank product (LoRA, arXiv 2106.09685)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for ``x`` [..., in]."""
        return self.base(x) + (x @ self.down.T) @ self.up.T


class PromptClassifier(nn.Module):
    """
    A backbone and a head: prompt ids, padded on the right, to one row of logits.

    ``pool``: "first" reads the first token's state (an encoder's [CLS]), "last+mean" the last
    token's beside the mean over all (a decoder).
    """

    def __init__(
        self, backbone: nn.Module, pool: str, n_out: int, hidden: int = 256, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pool = pool
        config: Any = backbone.config
        width = int(config.hidden_size) * (1 if pool == 'first' else 2)
        self.head = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, n_out),
        )

    def forward(self, ids: Tensor, n_tokens: Tensor) -> Tensor:
        """Return logits [rows, n_out] for ``ids`` [rows, width], ``n_tokens`` of each row real."""
        real = torch.arange(ids.shape[1], device=ids.device) < n_tokens[:, None]
        if self.pool == 'first':
            return self.head(
                self.backbone(input_ids=ids, attention_mask=real.long())
                .last_hidden_state[:, 0]
                .float()
            )
        # causal, padded on the right: no mask is needed, a real token never looks at padding
        states = self.backbone(input_ids=ids, use_cache=False).last_hidden_state.float()
        last = states[torch.arange(len(ids), device=ids.device), n_tokens - 1]
        mean = (states * real[..., None]).sum(1) / n_tokens[:, None]
        return self.head(torch.cat([last, mean], -1))

    def trained(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all that training changes, by name: what a checkpoint has to hold."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                yield name, parameter


def slm_classifier(
    decoder: Any, n_layers: int, rank: int, n_out: int, hidden: int = 256
) -> PromptClassifier:
    """
    Return the classifier on the first layers of a decoder, tuned by low-rank updates.

    ``decoder`` is transformers' bare model (no language-model head); it is changed in place. Its
    own weights stay as they are, in bfloat16; the updates and the head are float32.
    """
    decoder.layers = decoder.layers[:n_layers]
    decoder.config.num_hidden_layers = n_layers
    decoder.to(torch.bfloat16).requires_grad_(False)
    for layer in decoder.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name in _LORA_TARGETS:
                if hasattr(parent, name):
                    setattr(parent, name, LowRank(getattr(parent, name), rank))
    return PromptClassifier(decoder, 'last+mean', n_out, hidden)


def encoder_classifier(encoder: Any, n_out: int) -> PromptClassifier:
    """Return a classifier on an encoder's first token, all of it trained (ProxyModel, S3)."""
    return PromptClassifier(encoder, 'first', n_out)
