# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The kernels of one decode step in their order, from the embedding to the next token."""

from typing import Iterable, Optional, Sequence

import torch
from torch import Tensor

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cuda import launch
from timebill_ros.engine.cuda.arguments import Phase
from timebill_ros.engine.cuda.layout import make_plan, Plan
from timebill_ros.engine.cuda.program import attention_phase, phase_table, product_phases
from timebill_ros.engine.cuda.state import allocate_state
from timebill_ros.engine.cuda.tiers import BITS, HEAD_BITS, int4_group, Tier
from timebill_ros.engine.cuda.tuning import Limits, Tuning
from timebill_ros.engine.cuda.variants import MAX_BATCH, Step
from timebill_ros.engine.kv_cache import KVCache
from timebill_ros.engine.rope import RopeTable

WIDTHS = (1, 2, 4, 8)        # batch widths that have kernels


def kernels_needed(config: ModelConfig, tiers: Iterable[str], tuning: Tuning,
                   limits: Limits = Limits(), widths: Sequence[int] = WIDTHS) -> set[Step]:
    """Return the kernels that steps of these tiers and widths launch."""
    return {tier_plan(config, tier, width, tuning, limits).kernel
            for tier in tiers for width in widths}


def tier_plan(config: ModelConfig, tier: str, width: int, tuning: Tuning, limits: Limits) -> Plan:
    """Return the kernel of a tier for a batch width."""
    return make_plan(config, BITS[tier], HEAD_BITS[tier], int4_group(config), width, tuning, limits)


class DecodeStep:
    """
    Owns the buffers of a step and launches its two kernels: all layers, and the token's choice.

    All addresses are fixed at construction, so that the launches can be captured in a graph.
    """

    def __init__(self, config: ModelConfig, embed: Tensor, rope: RopeTable, cache: KVCache,
                 kernels: launch.Launcher, tuning: Tuning, limits: Limits,
                 tap_layer: Optional[int] = None) -> None:
        """Reserve buffers; ``tap_layer``'s output is left in ``tap`` at every step."""
        self._config, self._embed, self._rope, self._cache = config, embed, rope, cache
        self._kernels, self._limits, self._tap_layer = kernels, limits, tap_layer
        self.tuning = tuning
        self._blocks = limits.sm_count
        scratch = max(width * launch.splits_of(self._blocks, config.n_kv_heads, width)
                      for width in WIDTHS)
        self.state = allocate_state(cache.n_slots, config.vocab_size, config.n_kv_heads,
                                    config.head_dim, scratch, self._blocks, embed.device)

        def buffer(columns: int) -> Tensor:
            return torch.zeros((MAX_BATCH, columns), dtype=embed.dtype, device=embed.device)

        self._hidden = buffer(config.d_model)
        self._qkv = buffer((config.n_heads + 2 * config.n_kv_heads) * config.head_dim)
        self._attended = buffer(config.n_heads * config.head_dim)
        self._activated = buffer(config.d_ff)
        self.tap = buffer(config.d_model)        # [MAX_BATCH, d_model], rows of the newest step
        self._programs: dict[tuple[str, int], tuple[Plan, Tensor]] = {}

    def launch(self, tier: Tier, width: int) -> None:
        """Put the step of ``width`` rows into the current stream."""
        plan, phases = self._program(tier, width)
        config, tuning = self._config, self.tuning
        launch.step(
            self._kernels, plan.kernel, plan.layout, self._blocks, phases, self.state,
            self._rope.cos, self._rope.sin, self._cache.k[0], config.n_heads, config.norm_eps,
            config.head_dim ** -0.5, self._embed, self._hidden, tuning.attention_least_tiles)
        launch.sample(self._kernels, width, self._blocks, self.state)

    def _program(self, tier: Tier, width: int) -> tuple[Plan, Tensor]:
        """Return kernel and phases of a tier and width, made once: graphs keep their addresses."""
        program = self._programs.get((tier.name, width))
        if program is None:
            plan = tier_plan(self._config, tier.name, width, self.tuning, self._limits)
            phases: list[Phase] = []
            for index in range(len(tier.layers)):
                phases += self._layer_phases(tier, index, plan)
            phases += product_phases(tier.head, 'logits', self._blocks, self._hidden, None,
                                     norm=tier.final_norm)
            program = plan, phase_table(phases, self._embed.device)
            self._programs[tier.name, width] = program
        return program

    def _layer_phases(self, tier: Tier, index: int, plan: Plan) -> list[Phase]:
        layer, blocks = tier.layers[index], self._blocks
        small = layer.small
        tap = self.tap if index == self._tap_layer else None
        return [
            *product_phases(layer.qkv, 'store', blocks, self._hidden, self._qkv, small.qkv_bias,
                            small.input_norm),
            attention_phase(self._cache.k[index], self._cache.v[index], self._qkv, self._attended,
                            small.q_norm, small.k_norm),
            *product_phases(layer.o, 'add_residual', blocks, self._attended, self._hidden,
                            small.o_bias, parts=plan.parts['o']),
            *product_phases(layer.gate_up, 'swiglu', blocks, self._hidden, self._activated,
                            small.gate_up_bias, small.post_norm),
            *product_phases(layer.down, 'add_residual', blocks, self._activated, self._hidden,
                            small.down_bias, tap=tap, parts=plan.parts['down'])]
