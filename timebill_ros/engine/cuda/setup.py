# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""From a loaded model to a StepRunner: which tiers, do they fit, compile, quantise, capture."""

import bisect
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Sequence

import torch

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cuda.chunk_layers import choose_chunk, ChunkLayers, working_bytes
from timebill_ros.engine.cuda.decode_step import DecodeStep, kernels_needed, WIDTHS
from timebill_ros.engine.cuda.driver import device_limits, Kernels
from timebill_ros.engine.cuda.lean import asked_for, fixed_bytes, LeanTiers
from timebill_ros.engine.cuda.nvrtc import compile_cubins
from timebill_ros.engine.cuda.prefill_graphs import PrefillGraphs, stairs
from timebill_ros.engine.cuda.prompt_kernels import HEAD_DIMS as PROMPT_HEAD_DIMS
from timebill_ros.engine.cuda.prompt_kernels import PromptKernels
from timebill_ros.engine.cuda.prompt_kernels import source as prompt_source
from timebill_ros.engine.cuda.runner import StepRunner
from timebill_ros.engine.cuda.sliced_prefill import (
    GRAPH_S, prepare_attention, SlicedPrefill, warm_up)
from timebill_ros.engine.cuda.step_graphs import StepGraphs
from timebill_ros.engine.cuda.tiers import (
    BITS, build_tier, int4_group, Tier, tier_bytes, unsupported)
from timebill_ros.engine.cuda.tuning import DEFAULT
from timebill_ros.engine.cuda.variants import sources
from timebill_ros.engine.errors import EngineError, OutOfMemory
from timebill_ros.engine.kv_cache import kv_bytes_per_token, KVCache
from timebill_ros.engine.memory import gibibytes
from timebill_ros.engine.rope import RopeTable
from timebill_ros.engine.snapkv import SCORED_ON_CUDA_BYTES
from timebill_ros.engine.weights import Weights

_GRAPHS_SHARE = 0.05     # of the free memory that the graphs of a prefill may take
_LEAST_CACHE_TOKENS = 8192
_MIN_CAPABILITY = (8, 0)         # bf16 on the tensor cores


@dataclass
class TierChoice:
    """The tiers that will be served and why others are not."""

    names: list[str]
    notes: list[str]


def choose_tiers(wanted: Sequence[str], config: ModelConfig, device: torch.device,
                 dtype: torch.dtype, free_bytes: int) -> TierChoice:
    """
    Tell which of the ``wanted`` tiers the kernels can serve and ``free_bytes`` can hold.

    bf16 comes first, for its weights are there already (``lean_tiers`` loads none); what the other
    tiers need comes on top of them. No names at all: the model decodes with plain tensor code.
    """
    plain = _unserved(config, device, dtype, 'bf16')
    if plain is not None:
        return TierChoice([], [f'decoding with plain tensor code: {plain}'])
    others = [name for name in wanted if name != 'bf16']
    choice = _fitting(others, config, device, dtype, free_bytes)
    return TierChoice(['bf16', *choice.names], choice.notes)


def lean_tiers(wanted: Sequence[str], config: ModelConfig, device: torch.device,
               dtype: torch.dtype, free_bytes: int, max_context: int,
               notes: list[str]) -> Optional[LeanTiers]:
    """
    Return what quantises while loading if tiers are ``wanted`` without bf16; else None.

    What does not fit into ``free_bytes`` is left out with a note; raises OutOfMemory if that is
    all. A model that the kernels cannot serve is loaded as ever: None.
    """
    served = [name for name in BITS
              if name in wanted and _unserved(config, device, dtype, name) is None]
    if not asked_for(wanted) or not served:
        return None
    free = free_bytes - reserved_bytes(config, dtype, max_context) - fixed_bytes(config)
    choice = _fitting(served, config, device, dtype, free)
    notes += choice.notes
    if not choice.names:
        raise OutOfMemory(notes[-1])
    notes.append('no bf16 weights are kept (tier bf16 is not asked for): prompts are read with '
                 f'those of {choice.names[0]}')
    return LeanTiers(choice.names, config)


def _fitting(wanted: Sequence[str], config: ModelConfig, device: torch.device,
             dtype: torch.dtype, free_bytes: int) -> TierChoice:
    choice = TierChoice([], [])
    for name in wanted:
        reason = (_unserved(config, device, dtype, name) if name in BITS
                  else f'a GPU has {", ".join(BITS)}')
        need = 0 if reason else tier_bytes(name, config)
        if need > free_bytes:
            reason = f'it needs {gibibytes(need)} and {gibibytes(max(0, free_bytes))} are free'
        if reason is None:
            choice.names.append(name)
            free_bytes -= need
        else:
            choice.notes.append(f'tier {name} is left out: {reason}')
    return choice


def reserved_bytes(config: ModelConfig, dtype: torch.dtype, max_context: int) -> int:
    """Return the memory that no tier may take: a short chunk, and a cache to work with."""
    _, chunk_bytes = choose_chunk(config, dtype.itemsize, 0)
    tokens = min(max_context, _LEAST_CACHE_TOKENS)
    return chunk_bytes + tokens * kv_bytes_per_token(config, dtype)


def _unserved(config: ModelConfig, device: torch.device, dtype: torch.dtype,
              name: str) -> Optional[str]:
    if device.type != 'cuda':
        return 'it is served on CUDA devices'
    if torch.cuda.get_device_capability(device) < _MIN_CAPABILITY:
        return 'the kernels need compute capability 8.0'
    if dtype != torch.bfloat16:
        return f'the kernels compute in bfloat16, not {dtype}'
    return unsupported(config, name)


def make_tiers(names: Sequence[str], config: ModelConfig, weights: Weights) -> list[Tier]:
    """Quantise what is not bf16; takes about a second for a 7B model."""
    return [build_tier(name, weights, int4_group(config)) for name in names]


def make_runner(config: ModelConfig, weights: Weights, tiers: list[Tier], rope: RopeTable,
                cache: KVCache, cubins: Path, tap_layer: Optional[int] = None) -> StepRunner:
    """
    Return the runner with its graphs captured.

    The kernels come from ``cubins`` if they were compiled for this GPU before. Raises EngineError
    where they cannot be compiled or loaded.
    """
    device = weights.embed.device
    major, minor = torch.cuda.get_device_capability(device)
    limits = device_limits(device)
    widths = WIDTHS[:bisect.bisect_left(WIDTHS, cache.n_slots) + 1]
    code = sources(kernels_needed(config, [t.name for t in tiers], DEFAULT, limits, widths))
    kernels = Kernels(compile_cubins(code, f'sm_{major}{minor}', cubins), device)
    step = DecodeStep(config, weights.embed, rope, cache, kernels, DEFAULT, limits, tap_layer)
    graphs = StepGraphs(step, tiers)
    graphs.warm_up(widths)
    return StepRunner(step, graphs, cache)


def make_prompt_kernels(config: ModelConfig, device: torch.device, dtype: torch.dtype,
                        cubins: Path) -> tuple[Optional[PromptKernels], str]:
    """Return the kernels of prefill and eviction, or None and why there are none."""
    if dtype != torch.bfloat16:
        return None, f'the kernels compute in bfloat16, not {dtype}'
    if config.head_dim not in PROMPT_HEAD_DIMS or config.d_ff % 8:
        return None, f'head_dim {config.head_dim}, d_ff {config.d_ff}'
    capability = torch.cuda.get_device_capability(device)
    if capability < _MIN_CAPABILITY:
        return None, 'the kernels need compute capability 8.0'
    try:
        code = [prompt_source(config.head_dim)]
        cubin = compile_cubins(code, 'sm_{}{}'.format(*capability), cubins)
        return PromptKernels(Kernels(cubin, device), config.head_dim), ''
    except EngineError as error:
        return None, str(error)


def make_prefill(config: ModelConfig, weights: Weights, rope: RopeTable, cache: KVCache,
                 chunk_tokens: int, graph_tokens: int, tap_layer: int,
                 kernels: Optional[PromptKernels]) -> SlicedPrefill:
    """Return the prefill with its graphs captured, and everything it calls prepared."""
    layers = ChunkLayers(config, weights, rope, kernels)
    pace = warm_up(layers, cache, chunk_tokens)
    lengths = stairs(config, min(cache.capacity, graph_tokens))
    graphs = PrefillGraphs(layers, lengths, tap_layer, GRAPH_S * pace)
    graphs.capture()
    if kernels is not None:
        prepare_attention(layers, cache, lengths[-1] + 1 if lengths else 1, chunk_tokens)
    return SlicedPrefill(layers, cache, chunk_tokens, tap_layer, graphs, pace)


def prefill_room(config: ModelConfig, itemsize: int, free_bytes: int,
                 most_chunk: int) -> tuple[int, int, int]:
    """
    Return what is computed at once, as ``prefill.PrefillRoom``, where ``free_bytes`` are left.

    A chunk has ``most_chunk`` tokens at most; 0 = as many as memory allows.
    """
    chunk, nbytes = choose_chunk(config, itemsize, free_bytes)
    chunk = min(chunk, most_chunk or chunk)
    graphed = max((length for length in stairs(config, chunk)
                   if _graph_bytes(config, itemsize, length) <= _GRAPHS_SHARE * free_bytes),
                  default=0)
    return chunk, graphed, nbytes + (_graph_bytes(config, itemsize, graphed) if graphed else 0)


def _graph_bytes(config: ModelConfig, itemsize: int, length: int) -> int:
    """Return the memory of the graphs of lengths up to this one; they share it."""
    return working_bytes(config, itemsize, length) + SCORED_ON_CUDA_BYTES
