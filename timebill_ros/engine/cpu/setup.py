# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""From a loaded model to compiled steps on a CPU: compile, pack, choose the threads."""

import contextlib
import ctypes
from dataclasses import dataclass
from pathlib import Path
import time
from typing import Optional, Sequence

import torch

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cpu.build import library, NoCompiler
from timebill_ros.engine.cpu.matrices import INT4, INT8, Packer
from timebill_ros.engine.cpu.steps import CompiledSteps
from timebill_ros.engine.cpu.structures import is_packed
from timebill_ros.engine.cpu.tiers import build_tiers, CpuTier, tier_bytes, TIERS, unsupported
from timebill_ros.engine.errors import EngineError
from timebill_ros.engine.kv_cache import KVCache
from timebill_ros.engine.memory import available_bytes, gibibytes
from timebill_ros.engine.rope import RopeTable
from timebill_ros.engine.weights import Weights
from timebill_ros.executor.messages import AUTO_TIERS

_TRIAL_STEPS = 8
_CLEARLY = 0.85


@dataclass
class CpuTiers:
    """What was packed, and the library that computes with it; ``tiers`` empty = plain steps."""

    tiers: list[CpuTier]
    notes: list[str]
    library: Optional[ctypes.CDLL] = None


def make_tiers(wanted: Sequence[str], config: ModelConfig, weights: Weights,
               cache: Path) -> CpuTiers:
    """
    Compile (or find compiled in ``cache``) and pack the ``wanted`` tiers that fit.

    The tier that the model is loaded in comes without being asked for. Raises EngineError for the
    name of a tier that does not exist.
    """
    for name in wanted:
        if name not in (*TIERS, 'bf16', AUTO_TIERS):
            raise EngineError(f'tier {name!r} is not one of {", ".join(TIERS)}')
    others = [name for name in TIERS[1:] if name in wanted]
    reason = unsupported(config)
    if weights.embed.dtype != torch.float32:
        reason = f'the compiled steps compute in float32, not {weights.embed.dtype}'
    if not reason:
        try:
            compiled = library(cache)
        except NoCompiler as error:
            reason = str(error)
    if reason:
        left_out = f'; tiers {", ".join(others)} are left out' if others else ''
        return CpuTiers([], [f'decoding with plain tensor code: {reason}{left_out}'])
    names, notes = _that_fit(others, config, weights.embed.device)
    tiers, more = build_tiers(
        Packer(compiled), weights, config, names, free=AUTO_TIERS in wanted)
    if is_packed(tiers[0]):
        weights.drop_matrices()         # prefill and steps have all they need
        _return_free_memory()
    return CpuTiers(tiers, notes + more, compiled)


def _return_free_memory() -> None:
    """Have the C library give free memory back to the system, where it has a way."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _that_fit(others: list[str], config: ModelConfig,
              device: torch.device) -> 'tuple[list[str], list[str]]':
    names, notes, free = ['fp32'], [], available_bytes(device)
    for name in others:
        need = tier_bytes(config, INT8 if name == 'int8' else INT4, INT8)
        if need > free:
            notes.append(f'tier {name} is left out: it needs {gibibytes(need)} and '
                         f'{gibibytes(free)} are free')
            continue
        names.append(name)
        free -= need
    return names, notes


def make_steps(made: CpuTiers, config: ModelConfig, weights: Weights, rope: RopeTable,
               cache: KVCache, tap_layer: int, threads: list[int]) -> CompiledSteps:
    """
    Return the steps with the fastest of some numbers of ``threads``, found by trial.

    An earlier one is only left for one that is clearly faster: times measured before the next start
    should hold after it.
    """
    assert made.library is not None
    best: Optional[CompiledSteps] = None
    best_s = 0.0
    for count in threads:
        steps = CompiledSteps(
            made.library, config, weights, made.tiers, rope, cache, tap_layer, count)
        took_s = _trial_s(steps, cache) if len(threads) > 1 else 0.0
        if best is None or took_s < _CLEARLY * best_s:
            best, best_s = steps, took_s
    assert best is not None
    return best


def _trial_s(steps: CompiledSteps, cache: KVCache) -> float:
    """Return the best time of a step of an empty sequence in the fastest tier."""
    times = []
    for _ in range(_TRIAL_STEPS):
        cache.reset(0)
        began_s = time.perf_counter()
        steps.run([0], [0], steps.tiers[-1])
        times.append(time.perf_counter() - began_s)
    cache.reset(0)
    return min(times)
