# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How each kernel is cut to the GPU: measured with benchmarks/decode_h200.py, tables in docs."""

from dataclasses import dataclass, field, replace
from typing import Dict, Mapping, Tuple

from timebill_ros.engine.cuda.variants import Attention, Matvec

PRODUCTS = ('qkv', 'o', 'gate_up', 'down', 'head')


@dataclass(frozen=True)
class Cut:
    """One product: warps and pipeline stages of a block, blocks per multiprocessor."""

    warps: int = 8
    stages: int = 8
    blocks_per_sm: int = 1
    stream: bool = False
    lead: int = 8                    # units before its end at which a block lets the next start
    prefetch_bytes: int = 131072     # per block, to L2 while it waits for the kernel before


@dataclass(frozen=True)
class Tuning:
    """Cuts by (product, bits), and the cut of attention."""

    cuts: Mapping[Tuple[str, int], Cut] = field(default_factory=dict)
    attention_warps: int = 4
    attention_stages: int = 3
    attention_blocks_per_sm: float = 1
    attention_early: bool = False
    shared_floor_bytes: int = 0

    def cut(self, product: str, bits: int) -> Cut:
        """Return how a product is cut."""
        return self.cuts.get((product, bits), Cut(stream=product == 'down'))

    def matvec(self, product: str, bits: int, batch: int) -> Matvec:
        """Return the kernel of a product for a batch width."""
        cut = self.cut(product, bits)
        role = 'residual' if product in ('o', 'down') else product
        stages, stream = cut.stages, cut.stream
        return Matvec(bits, role, batch, cut.warps, stages, stream)

    def attention(self, head_dim: int) -> Attention:
        """Return the attention kernel."""
        return Attention(head_dim, self.attention_warps, self.attention_stages)

    def splits(self, sm_count: int, kv_heads: int, batch: int) -> int:
        """Return into how many stretches attention may divide a cache."""
        return max(1, round(self.attention_blocks_per_sm * sm_count / (kv_heads * batch)))

    def with_cut(self, product: str, bits: int, cut: Cut) -> 'Tuning':
        """Return this tuning with one product cut otherwise."""
        cuts: Dict[Tuple[str, int], Cut] = dict(self.cuts)
        cuts[product, bits] = cut
        return replace(self, cuts=cuts)


DEFAULT = Tuning()
