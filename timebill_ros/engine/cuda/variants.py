# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Which kernels are compiled: template arguments, names, thread counts and shared memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

GROUP = 128                  # columns that share one int4 scale
MAX_BATCH = 8                # rows of the batch that one product serves
MAX_GROUP = 8                # query heads that share one KV head
HEAD_DIMS = (64, 128)
SAMPLE_THREADS = 1024
EMBED_THREADS = 256

_SOURCES = ('primitives.cuh', 'common.cuh', 'matvec.cuh', 'attention.cuh', 'sampling.cuh')
_ROLES = {                   # role of a product: (prologue, epilogue)
    'qkv': ('RMS_NORM', 'STORE'),
    'residual': ('AS_IS', 'ADD_RESIDUAL'),
    'gate_up': ('RMS_NORM', 'SWIGLU'),
    'head': ('RMS_NORM', 'LOGITS')}


@dataclass(frozen=True)
class Matvec:
    """One matrix-vector kernel; warps and stages decide how much of W is in flight."""

    bits: int                # 16 (bf16), 8 or 4
    role: str                # one of _ROLES
    batch: int               # 1, 2, 4 or 8 vectors
    warps: int = 8
    stages: int = 8
    stream: bool = False     # the vectors come piecemeal, beside W (role residual only)

    @property
    def name(self) -> str:
        """Name of the entry point."""
        return (f'matvec_{self.role}_int{self.bits}_n{self.batch}_w{self.warps}_s{self.stages}'
                + '_stream' * self.stream)

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps * 32

    @property
    def chunk(self) -> int:
        """Columns that four lanes fetch at once."""
        return 512 // self.bits

    def shared_bytes(self, k: int, rows_per_block: int) -> int:
        """Dynamic shared memory for ``rows_per_block`` rows of ``k`` columns."""
        slots = 2 + self.chunk // 32 if self.stream else 2
        ring = self.stages * slots * self.threads * 16
        scales = self.stages * self.warps * 32 if self.bits == 4 else 0
        chunks = -(-k // self.chunk)
        tiles = -(-rows_per_block // (8 if self.role == 'gate_up' else 16))
        span = min(tiles, (-(-tiles * chunks // self.warps) + chunks - 2) // chunks + 1)
        sums = self.warps * span * 16 * self.batch * 4
        if _ROLES[self.role][0] == 'RMS_NORM':
            sums += self.warps * self.batch * 4 + 2 * k
        stride = -(-chunks * self.chunk // 64) * 64 + 32
        return ring + scales + sums + (0 if self.stream else self.batch * stride * 2)

    def entry(self) -> str:
        """Return the source line that makes this kernel."""
        prologue, epilogue = _ROLES[self.role]
        arguments = (f'{self.bits}, {prologue}, {epilogue}, {self.batch}, {self.warps}, '
                     f'{self.stages}, {int(self.stream)}')
        return f'ENTRY({self.name}, {self.threads}, MatvecArgs, (matvec<{arguments}>))'


@dataclass(frozen=True)
class Attention:
    """One attention kernel."""

    head_dim: int
    warps: int = 4
    stages: int = 3

    @property
    def name(self) -> str:
        """Name of the entry point."""
        return f'attention_d{self.head_dim}_w{self.warps}_s{self.stages}'

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps * 32

    @property
    def tile(self) -> int:
        """Cached tokens that a block takes per round."""
        return 16 * self.warps

    def shared_bytes(self) -> int:
        """Dynamic shared memory."""
        ring = self.stages * 2 * (self.head_dim // 16) * self.threads * 16
        small = (2 * MAX_GROUP + 3) * self.head_dim * 2 + 2 * self.head_dim * 4
        small += (2 * self.warps + 3) * MAX_GROUP * 4 + 16
        return ring + small

    def entry(self) -> str:
        """Return the source line that makes this kernel."""
        arguments = f'{self.head_dim}, {self.warps}, {self.stages}'
        return f'ENTRY({self.name}, {self.threads}, AttentionArgs, (attention<{arguments}>))'


SAMPLE_SHARED_BYTES = 2048 * 8 + 2 * 8 + 16
_FIXED_ENTRIES = (
    f'ENTRY(sample_token, {SAMPLE_THREADS}, SampleArgs, sample)',
    f'ENTRY(embed_token, {EMBED_THREADS}, EmbedArgs, embed)')


def source(variants: Iterable['Matvec | Attention'], replace_primitives: str = '') -> str:
    """Return one translation unit with the given kernels, embedding and sampling."""
    directory = Path(__file__).parent / 'kernels'
    texts = [(directory / name).read_text(encoding='utf-8') for name in _SOURCES]
    if replace_primitives:
        texts[0] = replace_primitives
    entries = sorted({variant.entry() for variant in variants})
    return '\n'.join(texts + entries + list(_FIXED_ENTRIES)) + '\n'
