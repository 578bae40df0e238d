# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How each kernel is cut to the GPU: measured with benchmarks/decode_h200.py, tables in docs."""

from dataclasses import dataclass, field, replace
from typing import Dict, Mapping, Tuple

from timebill_ros.engine.cuda.variants import Attention, Matvec

PRODUCTS = ('qkv', 'o', 'gate_up', 'down', 'head')


@dataclass(frozen=True)
class Limits:
    """What a GPU offers: multiprocessors, and bytes of shared memory for one block."""

    sm_count: int = 132
    shared_bytes: int = 227 * 1024


def rows_per_block(rows: int, blocks: int) -> int:
    """Rows that each of at most ``blocks`` blocks takes: a multiple of four, as the scales lie."""
    return 4 * max(1, -(-rows // (4 * blocks)))


@dataclass(frozen=True)
class Cut:
    """One product: warps and pipeline stages of a block, blocks per multiprocessor."""

    warps: int = 16
    stages: int = 4
    blocks_per_sm: int = 1
    stream: bool = False


@dataclass(frozen=True)
class Tuning:
    """Cuts by (product, bits), and the cut of attention."""

    cuts: Mapping[Tuple[str, int], Cut] = field(default_factory=dict)
    attention_warps: int = 8
    attention_stages: int = 2
    attention_blocks_per_sm: float = 1
    attention_least_tiles: int = 1

    def cut(self, product: str, bits: int) -> Cut:
        """Return how a product is cut."""
        return self.cuts.get((product, bits), Cut())

    def matvec(self, product: str, bits: int, batch: int, rows: int, k: int,
               limits: Limits) -> Matvec:
        """
        Return the kernel of a product [rows, k] for a batch width.

        Where its vectors do not fit into shared memory the pipeline is shortened, and if that is
        not enough they are streamed (role residual).
        """
        cut = self.cut(product, bits)
        role = 'residual' if product in ('o', 'down') else product
        kernel = Matvec(bits, role, batch, cut.warps, cut.stages, cut.stream)
        per_block = rows_per_block(rows, limits.sm_count * cut.blocks_per_sm)

        def fits() -> bool:
            return kernel.shared_bytes(k, per_block) <= limits.shared_bytes

        # Streaming costs bf16 little and the formats that are unpacked much.
        shortest = cut.stages if bits == 16 and role == 'residual' else 3
        while not fits() and kernel.stages > shortest:
            kernel = replace(kernel, stages=kernel.stages - 1)
        if not fits() and role == 'residual':
            kernel = replace(kernel, stages=cut.stages, stream=True)
        while not fits() and kernel.stages > 2:
            kernel = replace(kernel, stages=kernel.stages - 1)
        return kernel

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


# Measured on an NVIDIA H200, 2026-11-22, Qwen2.5-7B shape (docs/gpu-engine.md).
DEFAULT = Tuning({
    ('qkv', 16): Cut(16, 8), ('o', 16): Cut(16, 8), ('gate_up', 16): Cut(8, 8),
    ('down', 16): Cut(16, 8), ('head', 16): Cut(8, 8), ('down', 8): Cut(16, 6),
    ('head', 8): Cut(8, 12)})
