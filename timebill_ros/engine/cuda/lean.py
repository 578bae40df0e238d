# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Loading without bf16 weights: each layer is quantised when it is read, and its bf16 let go."""

from typing import Sequence

import torch

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cuda.quantize import quantize
from timebill_ros.engine.cuda.tiers import (
    BITS, build_layer, HEAD_BITS, int4_group, Tier, TierLayer)
from timebill_ros.engine.weights import LayerWeights, Weights


class LeanTiers:
    """
    Makes tiers of layers as they come; the first tier's matrices take the place of the bf16 ones.

    The prefill computes with those, made dense one after the other in ``Weights.scratch``.
    """

    def __init__(self, names: Sequence[str], config: ModelConfig) -> None:
        """Take the names of the tiers, best first; bf16 is none of them."""
        self._config, self._group = config, int4_group(config)
        self._layers: dict[str, list[TierLayer]] = {name: [] for name in names}

    def shrink(self, layer: LayerWeights) -> None:
        """Quantise a layer for every tier, and replace its own matrices."""
        made = {name: build_layer(name, layer, self._group) for name in self._layers}
        for name, own in made.items():
            self._layers[name].append(own)
        best = next(iter(made.values()))
        layer.qkv, layer.o, layer.gate_up, layer.down = best.qkv, best.o, best.gate_up, best.down

    def finish(self, weights: Weights) -> list[Tier]:
        """Quantise the head; its bf16 stays where it is the embedding, which is looked up in."""
        heads = {HEAD_BITS[name]: quantize(weights.head, HEAD_BITS[name], self._group)
                 for name in self._layers}
        if not self._config.tie_embeddings:
            weights.head = heads[HEAD_BITS[next(iter(self._layers))]]
        weights.scratch = torch.empty(
            scratch_entries(self._config), dtype=weights.embed.dtype, device=weights.embed.device)
        return [Tier(name, layers, weights.final_norm, heads[HEAD_BITS[name]])
                for name, layers in self._layers.items()]


def scratch_entries(config: ModelConfig) -> int:
    """Return the entries of a layer's largest matrix."""
    heads = (config.n_heads + 2 * config.n_kv_heads) * config.head_dim
    return config.d_model * max(heads, 2 * config.d_ff)


def fixed_bytes(config: ModelConfig) -> int:
    """Return the memory beside the tiers: embedding, scratch, and what one layer is read into."""
    head = 0 if config.tie_embeddings else 2 * config.vocab_size * config.d_model
    layer = 2 * (scratch_entries(config) + config.d_model * (
        config.d_ff + 2 * config.n_heads * config.head_dim))
    return 2 * config.vocab_size * config.d_model + 2 * scratch_entries(config) + max(head, layer)


def asked_for(tiers: Sequence[str]) -> bool:
    """Tell whether bf16 weights are not wanted: all the tiers that are named have fewer bits."""
    return bool(tiers) and all(BITS.get(name, 16) < 16 for name in tiers)
