# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""From a ``Load`` message to a model in memory: which one, on which device, in which dtype."""

from dataclasses import dataclass
import hashlib
from pathlib import Path
import platform
from typing import Callable, Optional, TYPE_CHECKING

import torch

from timebill_ros import __version__
from timebill_ros.engine.config import ModelConfig, read_config
from timebill_ros.engine.errors import ModelError, OutOfMemory
from timebill_ros.engine.memory import gibibytes, out_of_memory_as_ours, usable_bytes
from timebill_ros.engine.source import find_model, ModelSource
from timebill_ros.engine.text import TextCodec
from timebill_ros.engine.threads import choose_threads, forbid_downloads
from timebill_ros.engine.weights import load_weights, Weights
from timebill_ros.executor.messages import Load
from timebill_ros.paths import cache_dir

if TYPE_CHECKING:
    from timebill_ros.engine.cuda.tiers import Tier

_DTYPES = {
    'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
# Up to here a CPU computes in float32, token for token what transformers gives. Above, half the
# bytes to stream count for more.
_CPU_FLOAT32_UP_TO_BYTES = 4 * 1024 ** 3

# A chunk cannot be interrupted, and on a CPU takes a good part of a second.
CPU_PREFILL_CHUNK = 256
CUDA_PREFILL_CHUNK = 2048

Report = Callable[[str, float], None]        # what is being done, fraction 0..1


@dataclass
class LoadedModel:
    """A model in memory with its tokenizer."""

    source: ModelSource
    config: ModelConfig
    weights: Weights
    codec: TextCodec
    device: torch.device
    dtype: torch.dtype
    max_context: int                         # tokens, prompt and response
    notes: list[str]                         # for the operator
    tiers: Optional[list['Tier']] = None     # CUDA, made while loading: no bf16 weights were kept


def load_model(load: Load, report: Report) -> LoadedModel:
    """Load what the message asks for; raises ModelError or OutOfMemory with what to mend."""
    if not load.allow_download:
        forbid_downloads()
    device = choose_device(load.device)
    if device.type == 'cpu':
        torch.set_num_threads(choose_threads(load.threads))
    source = find_model(
        load.model, cache_dir(load.cache_dir) / 'models', load.allow_download,
        lambda what, fraction: report(what, 0.7 * fraction))
    report('reading the configuration and the tokenizer', 0.7)
    config = read_config(source.directory)
    codec = TextCodec(source.directory)
    dtype = choose_dtype(load.dtype, config, device)
    max_context = min(load.max_context or config.max_positions, config.max_positions)
    notes = _notes(load, source, config, codec, device)
    free = usable_bytes(device, load.gpu_memory_fraction)
    lean = None
    if device.type == 'cuda':
        from timebill_ros.engine.cuda import setup
        lean = setup.lean_tiers(load.tiers, config, device, dtype, free, max_context, notes)
    if lean is None:
        _check_memory(config, dtype, device, free)

    def loaded(fraction: float) -> None:
        report('loading weights', 0.8 + 0.2 * fraction)

    with torch.inference_mode(), out_of_memory_as_ours('loading the weights', device):
        if lean is None:
            weights, tiers = load_weights(source.directory, config, device, dtype, loaded), None
        else:
            weights = load_weights(source.directory, config, device, dtype, loaded, lean.shrink)
            tiers = lean.finish(weights)
    return LoadedModel(source, config, weights, codec, device, dtype, max_context, notes, tiers)


def _check_memory(config: ModelConfig, dtype: torch.dtype, device: torch.device,
                  have: int) -> None:
    """Raise OutOfMemory if the weights cannot fit: on a CPU the system would kill the process."""
    need = config.n_parameters * dtype.itemsize
    if need > have:
        raise OutOfMemory(f'the weights need {gibibytes(need)} in {dtype}; '
                          f'{gibibytes(have)} are free on {device}')


def _notes(load: Load, source: ModelSource, config: ModelConfig, codec: TextCodec,
           device: torch.device) -> list[str]:
    """Return what the operator should know of the model."""
    notes = []
    if not codec.has_chat_template:
        notes.append(f'{source.name} has no chat template; a conversation is written as '
                     '"User: ... Assistant:"')
    if config.sliding_window is not None:
        notes.append(f'{source.name} attends within a sliding window; the context is limited to '
                     f'its {config.sliding_window} tokens, which every layer sees whole')
    if load.max_context > config.max_positions:
        notes.append(f'max_context {load.max_context} is more than {source.name} can take; it is '
                     f'{config.max_positions}')
    if device.type == 'cpu' and load.prefill_chunk > CPU_PREFILL_CHUNK:
        notes.append(f'prefill_chunk {load.prefill_chunk} is cut to {CPU_PREFILL_CHUNK}: on a CPU '
                     'a longer chunk would hold up a cancel')
    if not config.eos_ids:
        notes.append(f'{source.name} names no end token; every response runs to its cap')
    return notes


def prefill_chunk(asked: int, device: torch.device) -> int:
    """Return the tokens of a prefill chunk: as asked (0 = chosen), on a CPU within its limit."""
    if device.type == 'cpu':
        return min(asked or CPU_PREFILL_CHUNK, CPU_PREFILL_CHUNK)
    return asked or CUDA_PREFILL_CHUNK


def choose_device(name: str) -> torch.device:
    """Return the device; "auto" is an accelerator if there is one. Raises ModelError."""
    if name == 'auto':
        return torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(f'device {name!r} is not one of auto, cpu, cuda, cuda:N') from error
    if device.type == 'cpu':
        return torch.device('cpu')
    if device.type != 'cuda':
        raise ModelError(f'device {name!r} is not one of auto, cpu, cuda, cuda:N')
    if not torch.cuda.is_available():
        raise ModelError(f'device {name!r}: torch {torch.__version__} sees no CUDA device')
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise ModelError(f'device {name!r}: there are {torch.cuda.device_count()} CUDA devices')
    return torch.device('cuda', index)


def choose_dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of weights, activations and cache; "auto" is bfloat16 on CUDA."""
    if name in _DTYPES:
        return _DTYPES[name]
    if name != 'auto':
        raise ModelError(f'dtype {name!r} is not one of auto, {", ".join(_DTYPES)}')
    if device.type == 'cuda' or 4 * config.n_parameters > _CPU_FLOAT32_UP_TO_BYTES:
        return torch.bfloat16
    return torch.float32


def device_name(device: torch.device) -> str:
    """Return the device for people and for profiles: "NVIDIA H200", "AMD EPYC x2 threads"."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    name = f'{platform.machine()} CPU'
    for line in Path('/proc/cpuinfo').read_text(errors='replace').splitlines():
        if line.startswith('model name'):
            name = ' '.join(line.partition(':')[2].split())
            break
    return f'{name} x{torch.get_num_threads()} threads'


def model_key(source: ModelSource) -> str:
    """Return the identity of a model: its name and a hash of its configuration."""
    digest = hashlib.sha256((source.directory / 'config.json').read_bytes())
    return f'{source.name}-{digest.hexdigest()[:12]}'


def engine_version() -> str:
    """Return what measured times depend on: the version, the engine room's code, and torch."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob('*')):
        if file.suffix in ('.py', '.cuh', '.hpp', '.cpp'):
            digest.update(file.read_bytes())
    return f'{__version__}+{digest.hexdigest()[:8]}-torch{torch.__version__}'
