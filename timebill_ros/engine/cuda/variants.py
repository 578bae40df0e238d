# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Which kernels are compiled: template arguments, names, thread counts, and the source."""

from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

GROUP = 128                  # columns of int4 that share a scale ...
FINE_GROUP = 32              # ... or, finer, a scale and an offset
MAX_BATCH = 8                # rows of the batch that one step serves
MAX_GROUP = 8                # query heads that share one KV head
HEAD_DIMS = (64, 128)
SAMPLE_THREADS = 1024
SAMPLE_SHARED_BYTES = 2048 * 8 + 2 * 8 + 16

_COMMON_SOURCES = ('primitives.cuh', 'common.cuh')
_STEP_SOURCES = ('program.cuh', 'cursor.cuh', 'formats.cuh', 'product.cuh', 'attention.cuh',
                 'step.cuh')
_SAMPLING_SOURCES = ('sampling.cuh',)
_SAMPLING_ENTRY = f'ENTRY(sample_token, {SAMPLE_THREADS}, SampleArgs, sample)'


@dataclass(frozen=True)
class Step:
    """One kernel of a whole step; warps and stages decide how much of the weights is in flight."""

    bits: int                # of the layers' matrices: 16 (bf16), 8 or 4
    head_bits: int           # of the head
    batch: int               # 1, 2, 4 or 8 vectors
    head_dim: int
    warps: int = 16
    stages: int = 8
    group: int = GROUP       # of int4

    @property
    def name(self) -> str:
        """Name of the entry point."""
        return (f'step_int{self.bits}_g{self.group}_head{self.head_bits}_n{self.batch}'
                f'_d{self.head_dim}_w{self.warps}_s{self.stages}')

    def format_of(self, bits: int) -> int:
        """Return what kernels/formats.cuh calls the format of a matrix."""
        return 5 if bits == 4 and self.group == FINE_GROUP else bits

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.warps * 32

    def entry(self) -> str:
        """Return the source line that makes this kernel."""
        formats = f'{self.format_of(self.bits)}, {self.format_of(self.head_bits)}'
        arguments = f'{formats}, {self.batch}, {self.head_dim}, {self.warps}, {self.stages}'
        return f'ENTRY({self.name}, {self.threads}, StepArgs, (step<{arguments}>))'


def sources(kernels: Iterable[Step]) -> list[str]:
    """Return translation units: one per step kernel, since each takes seconds, and sampling."""
    entries = sorted({kernel.entry() for kernel in kernels})
    units = [_text(_COMMON_SOURCES + _STEP_SOURCES) + entry + '\n' for entry in entries]
    return [*units, _text(_COMMON_SOURCES + _SAMPLING_SOURCES) + _SAMPLING_ENTRY + '\n']


def emulator_source(kernels: Iterable[Step], primitives: str) -> str:
    """Return all of it as one unit, with other ``primitives``."""
    text = _text(_COMMON_SOURCES[1:] + _STEP_SOURCES + _SAMPLING_SOURCES)
    entries = sorted({kernel.entry() for kernel in kernels})
    return '\n'.join([primitives, text, *entries, _SAMPLING_ENTRY]) + '\n'


def _text(names: Iterable[str]) -> str:
    directory = Path(__file__).parent / 'kernels'
    return '\n'.join((directory / name).read_text(encoding='utf-8') for name in names) + '\n'
