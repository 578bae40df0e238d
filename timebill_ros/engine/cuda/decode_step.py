# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The kernels of one decode step in their order, from the embedding to the next token."""

from typing import Iterable, Optional, Sequence, Set, Tuple, Union

import torch
from torch import Tensor

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cuda import launch
from timebill_ros.engine.cuda.state import allocate_state
from timebill_ros.engine.cuda.tiers import Tier
from timebill_ros.engine.cuda.tuning import Limits, PRODUCTS, Tuning
from timebill_ros.engine.cuda.variants import Attention, Matvec, MAX_BATCH
from timebill_ros.engine.kv_cache import KVCache
from timebill_ros.engine.rope import RopeTable

WIDTHS = (1, 2, 4, 8)        # batch widths that have kernels


def product_shape(config: ModelConfig, product: str) -> Tuple[int, int]:
    """Return rows of the result and columns of the matrix of a product."""
    c = config
    heads = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim
    return {'qkv': (heads, c.d_model), 'o': (c.d_model, c.n_heads * c.head_dim),
            'gate_up': (c.d_ff, c.d_model), 'down': (c.d_model, c.d_ff),
            'head': (c.vocab_size, c.d_model)}[product]


def kernels_needed(config: ModelConfig, tiers: Iterable[Tier], tuning: Tuning,
                   limits: Limits = Limits(), widths: Sequence[int] = WIDTHS
                   ) -> Set[Union[Matvec, Attention]]:
    """Return the kernels that steps of these tiers and widths launch."""
    needed: Set[Union[Matvec, Attention]] = {tuning.attention(config.head_dim)}
    for tier in tiers:
        for width in widths:
            needed |= {tuning.matvec(p, tier.bits_of(p), width, *product_shape(config, p), limits)
                       for p in PRODUCTS}
    return needed


class DecodeStep:
    """
    Owns the buffers of a step and launches its kernels; five per layer, and four around them.

    All addresses are fixed at construction, so that the launches can be captured in a graph.
    """

    def __init__(self, config: ModelConfig, embed: Tensor, rope: RopeTable, cache: KVCache,
                 kernels: launch.Launcher, tuning: Tuning, limits: Limits,
                 tap_layer: Optional[int] = None) -> None:
        """Reserve buffers; ``tap_layer``'s output is left in ``tap`` at every step."""
        self._config, self._embed, self._rope, self._cache = config, embed, rope, cache
        self._kernels, self._limits, self._tap_layer = kernels, limits, tap_layer
        self.tuning = tuning
        splits = max(tuning.splits(limits.sm_count, config.n_kv_heads, width) for width in WIDTHS)
        blocks = max(self._blocks('head', bits) for bits in (16, 8, 4))
        self.state = allocate_state(cache.n_slots, config.vocab_size, config.n_kv_heads,
                                    config.head_dim, splits, blocks, embed.device)

        def buffer(columns: int) -> Tensor:
            return torch.zeros((MAX_BATCH, columns), dtype=embed.dtype, device=embed.device)

        self._hidden = buffer(config.d_model)
        self._qkv = buffer((config.n_heads + 2 * config.n_kv_heads) * config.head_dim)
        self._attended = buffer(config.n_heads * config.head_dim)
        self._activated = buffer(config.d_ff)
        self.tap = buffer(config.d_model)        # [MAX_BATCH, d_model], rows of the newest step

    def launch(self, tier: Tier, width: int) -> None:
        """Put the step of ``width`` rows into the current stream."""
        hidden = self._hidden[:width]
        launch.embed(self._kernels, width, self._embed, hidden, self.state)
        for index in range(len(tier.layers)):
            self._launch_layer(tier, index, width, hidden)
        bits = tier.head.bits
        blocks = self._blocks('head', bits)
        launch.head(self._kernels, self._matvec('head', bits, width),
                    blocks, tier.head, hidden, tier.final_norm,
                    self._config.norm_eps, self.state)
        launch.sample(self._kernels, width, blocks, self.state)

    def _launch_layer(self, tier: Tier, index: int, width: int, hidden: Tensor) -> None:
        config, layer, kernels = self._config, tier.layers[index], self._kernels
        small, eps = layer.small, config.norm_eps
        qkv, attended = self._qkv[:width], self._attended[:width]
        activated = self._activated[:width]

        def product(name: str, *arguments: Optional[Tensor], **named: Optional[Tensor]) -> None:
            weight = getattr(layer, name)
            blocks = self._blocks(name, weight.bits)
            launch.matvec(kernels, self._matvec(name, weight.bits, width), blocks, weight,
                          *arguments, norm_eps=eps, **named)

        product('qkv', hidden, qkv, small.qkv_bias, small.input_norm)
        splits = self.tuning.splits(self._limits.sm_count, config.n_kv_heads, width)
        launch.attention(
            kernels, self.tuning.attention(config.head_dim), splits, width, qkv, attended,
            self._cache.k[index], self._cache.v[index], self._rope.cos, self._rope.sin,
            config.head_dim ** -0.5, self.state, small.q_norm, small.k_norm, eps,
            self.tuning.attention_least_tiles)
        product('o', attended, hidden, small.o_bias)
        product('gate_up', hidden, activated, small.gate_up_bias, small.post_norm)
        tap = self.tap[:width] if index == self._tap_layer else None
        # Long vectors stream slowly beside quantised weights: two halves are faster then.
        halves = 2 if width == MAX_BATCH and self._streams(layer.down.bits, width) else 1
        for rows in range(halves):
            part = slice(rows * width // halves, (rows + 1) * width // halves)
            launch.matvec(
                kernels, self._matvec('down', layer.down.bits, width // halves),
                self._blocks('down', layer.down.bits), layer.down, activated[part], hidden[part],
                small.down_bias, tap=None if tap is None else tap[part])

    def _streams(self, bits: int, width: int) -> bool:
        return bits < 16 and self._matvec('down', bits, width).stream

    def _matvec(self, product: str, bits: int, width: int) -> Matvec:
        shape = product_shape(self._config, product)
        return self.tuning.matvec(product, bits, width, *shape, self._limits)

    def _blocks(self, product: str, bits: int) -> int:
        return self._limits.sm_count * self.tuning.cut(product, bits).blocks_per_sm
