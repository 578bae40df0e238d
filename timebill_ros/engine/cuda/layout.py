# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What lies where in a block's shared memory, and which step kernel fits into it."""

import ctypes
from dataclasses import dataclass
from typing import Iterable

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cuda.arguments import Phase
from timebill_ros.engine.cuda.tuning import Limits, rows_per_block, Tuning
from timebill_ros.engine.cuda.variants import FINE_GROUP, GROUP, MAX_GROUP, Step
from timebill_ros.engine.errors import EngineError

PRODUCTS = ('qkv', 'o', 'gate_up', 'down', 'head')
SCALE_COLUMNS = 128          # columns of a vector that share a scale (kernels/formats.cuh)
_HELD_PHASES = 4
_PART_BYTES = (80 * 1024, 64 * 1024, 48 * 1024, 32 * 1024, 16 * 1024)


@dataclass(frozen=True)
class Layout:
    """Offsets in bytes (kernels/program.cuh, StepArgs); the ring, and int4's scales, come first."""

    x_at: int
    work_at: int
    carry_at: int
    phases_at: int
    rows_at: int
    total_bytes: int


@dataclass(frozen=True)
class Plan:
    """A step kernel, its shared memory, and into how many parts of its columns ``down`` is cut."""

    kernel: Step
    layout: Layout
    parts: dict[str, int]


@dataclass(frozen=True)
class Product:
    """Shape of a product as a phase sees it, which takes ``part_k`` of its columns at most."""

    bits: int
    rows: int                # of the result
    pairs: bool              # gate and up rows together
    part_k: int
    keeps: bool = False      # one of several parts
    group: int = GROUP       # of int4

    @property
    def n_chunks(self) -> int:
        """Chunks of 128 bytes in a row of the part."""
        return -(-self.part_k * self.bits // 1024)

    def vector_bytes(self, batch: int) -> int:
        """Shared memory of its vectors (kernels/formats.cuh, vector_stride)."""
        chunk = 1024 // self.bits
        padded = -(-self.part_k // chunk) * chunk * (2 if self.bits == 16 else 1)
        stride = -(-padded // 128) * 128 + 64
        if self.bits == 16:
            return batch * stride
        fine = self.bits == 4 and self.group == FINE_GROUP
        sums = padded // FINE_GROUP if fine else 0
        return 2 * batch * stride + 4 * batch * (padded // SCALE_COLUMNS + sums)

    def work_bytes(self, batch: int, warps: int, blocks: int) -> int:
        """Shared memory of its sums (kernels/product.cuh)."""
        tiles = -(-rows_per_block(self.rows, blocks) // (8 if self.pairs else 16))
        per_warp = -(-tiles * self.n_chunks // warps)
        span = min(tiles, (per_warp + self.n_chunks - 2) // self.n_chunks + 1)
        return warps * span * 16 * batch * 4 + warps * batch * 4


def product_shape(config: ModelConfig, product: str) -> tuple[int, int]:
    """Return rows of the result and columns of the matrix of a product."""
    c = config
    heads = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim
    return {'qkv': (heads, c.d_model), 'o': (c.d_model, c.n_heads * c.head_dim),
            'gate_up': (c.d_ff, c.d_model), 'down': (c.d_model, c.d_ff),
            'head': (c.vocab_size, c.d_model)}[product]


def part_columns(k: int, bits: int, parts: int) -> int:
    """Columns of each part but the last, whole chunks (and groups) of a row of ``k``."""
    chunk = 1024 // bits
    return -(-k // (chunk * parts)) * chunk


def make_plan(config: ModelConfig, bits: int, head_bits: int, group: int, batch: int,
              tuning: Tuning, limits: Limits) -> Plan:
    """Return the kernel for a batch width that fits; raises EngineError if none does."""
    wanted = tuning.warps_of(bits)
    for warps in (wanted, *(w for w in (8, 4) if w < wanted)):
        for stages in range(tuning.stages, 2, -1):
            kernel = Step(bits, head_bits, batch, config.head_dim, warps, stages, group)
            for part_bytes in _PART_BYTES:
                products, parts = _cut(config, kernel, part_bytes)
                layout = make_layout(kernel, products.values(), limits.sm_count)
                if layout.total_bytes <= limits.shared_bytes:
                    return Plan(kernel, layout, parts)
    raise EngineError(f'a step for {batch} sequences does not fit into {limits.shared_bytes} B of '
                      'shared memory')


def _cut(config: ModelConfig, kernel: Step, part_bytes: int
         ) -> tuple[dict[str, Product], dict[str, int]]:
    products, all_parts = {}, {}
    for name in PRODUCTS:
        rows, k = product_shape(config, name)
        bits = kernel.head_bits if name == 'head' else kernel.bits
        product = Product(bits, rows, name == 'gate_up', k, group=kernel.group)
        parts = 1
        while name in ('o', 'down') and product.vector_bytes(kernel.batch) > part_bytes:
            parts += 1
            product = Product(bits, rows, False, part_columns(k, bits, parts), True, kernel.group)
        products[name], all_parts[name] = product, parts
    return products, all_parts


def make_layout(kernel: Step, products: Iterable[Product], blocks: int) -> Layout:
    """Return the offsets for a kernel that does these products."""
    products = list(products)
    batch, warps, width = kernel.batch, kernel.warps, kernel.head_dim
    ring = kernel.stages * warps * 2048
    unit_scales = 512 if kernel.group == FINE_GROUP else 64
    scale_ring = kernel.stages * warps * unit_scales if kernel.bits == 4 else 0
    # In attention, instead of x: the keys and values of a tile, then the outputs of the warps.
    keys_and_values = warps * 16 * width * 2 * 2
    outputs = warps * MAX_GROUP * (width + 1) * 4
    x_at = ring + scale_ring
    work_at = _aligned(x_at + max([keys_and_values, outputs] + [
        product.vector_bytes(batch) for product in products]))
    attention = ((2 * MAX_GROUP + 3) * width * 2 + 2 * width * 4
                 + (2 * warps + 3) * MAX_GROUP * 4)
    carry_at = _aligned(work_at + max(
        [attention] + [product.work_bytes(batch, warps, blocks) for product in products]))
    carry = max([0] + [rows_per_block(product.rows, blocks) * batch * 4
                       for product in products if product.keeps])
    phases_at = _aligned(carry_at + carry)
    rows_at = phases_at + _HELD_PHASES * ctypes.sizeof(Phase)
    return Layout(x_at, work_at, carry_at, phases_at, rows_at, rows_at + batch * 12)


def _aligned(size: int) -> int:
    return -(-size // 128) * 128
