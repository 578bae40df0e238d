# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How a step is cut to the GPU: measured with benchmarks/decode_h200.py, tables in docs."""

from dataclasses import dataclass, field
from typing import Mapping


@dataclass(frozen=True)
class Limits:
    """What a GPU offers: multiprocessors, and bytes of shared memory for one block."""

    sm_count: int = 132
    shared_bytes: int = 227 * 1024


@dataclass(frozen=True)
class Tuning:
    """
    Warps of a block by bits of the layers' weights, stages of a warp's ring, how attention splits.

    Where that does not fit into shared memory, layout.py takes fewer stages, then fewer warps.
    """

    warps: Mapping[int, int] = field(default_factory=dict)
    stages: int = 8
    attention_least_tiles: int = 1

    def warps_of(self, bits: int) -> int:
        """Return the warps of a block."""
        return self.warps.get(bits, 8)


def rows_per_block(rows: int, blocks: int) -> int:
    """Rows that each of at most ``blocks`` blocks takes: a multiple of four, as the scales lie."""
    return 4 * max(1, -(-rows // (4 * blocks)))


DEFAULT = Tuning()
