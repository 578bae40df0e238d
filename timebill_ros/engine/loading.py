# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""From a ``Load`` message to the parts of an engine: where the model is, on which device, in which dtype."""

from dataclasses import dataclass
import hashlib
import os
from pathlib import Path
from typing import Callable, List

import torch

from timebill_ros import __version__
from timebill_ros.engine.config import ModelConfig, read_config
from timebill_ros.engine.errors import ModelError
from timebill_ros.engine.source import find_model, ModelSource
from timebill_ros.engine.text import TextCodec
from timebill_ros.engine.threads import choose_threads
from timebill_ros.engine.weights import load_weights, Weights
from timebill_ros.executor.messages import Load
from timebill_ros.paths import cache_dir

_DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16, 'float16': torch.float16}
_CPU_FLOAT32_UP_TO_BYTES = 4 * 1024 ** 3     # of weights in float32; above, memory and its bandwidth call for bfloat16

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
    notes: List[str]                         # for the operator's log


def load_model(load: Load, report: Report) -> LoadedModel:
    """Load what the message asks for; raises ModelError that says what to mend."""
    os.environ['HF_HUB_OFFLINE'] = '0' if load.allow_download else '1'
    device = choose_device(load.device)
    if device.type == 'cpu':
        torch.set_num_threads(choose_threads(load.threads))
    source = find_model(
        load.model, cache_dir(load.cache_dir) / 'models', load.allow_download,
        lambda what, fraction: report(what, 0.7 * fraction))
    report('reading the configuration and the tokenizer', 0.7)
    config = read_config(source.directory)
    codec = TextCodec(source.directory)
    notes = []
    if not codec.has_chat_template:
        notes.append(f'{source.name} has no chat template; conversations are written as "User: ... Assistant:"')
    if config.sliding_window is not None:
        notes.append(f'{source.name} attends within a sliding window; the context is limited to '
                     f'{config.sliding_window} tokens, which every layer sees whole')
    if not config.eos_ids:
        notes.append(f'{source.name} names no end token; every response runs to its cap or a stop string')
    dtype = choose_dtype(load.dtype, config, device)
    weights = load_weights(
        source.directory, config, device, dtype, lambda fraction: report('loading weights', 0.8 + 0.2 * fraction))
    return LoadedModel(source, config, weights, codec, device, dtype, notes)


def choose_device(name: str) -> torch.device:
    """Return the device; "auto" is an accelerator if there is one. Raises ModelError if it is not there."""
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
        raise ModelError(f'device {name!r}: this torch ({torch.__version__}) sees no CUDA device')
    index = device.index or 0
    if index >= torch.cuda.device_count():
        raise ModelError(f'device {name!r}: there are only {torch.cuda.device_count()} CUDA devices')
    return torch.device('cuda', index)


def choose_dtype(name: str, config: ModelConfig, device: torch.device) -> torch.dtype:
    """Return the dtype of weights, activations and cache; "auto" is bfloat16 on CUDA, on a CPU what fits the model."""
    if name in _DTYPES:
        return _DTYPES[name]
    if name != 'auto':
        raise ModelError(f'dtype {name!r} is not one of auto, {", ".join(_DTYPES)}')
    if device.type == 'cuda':
        return torch.bfloat16
    return torch.float32 if 4 * n_parameters(config) <= _CPU_FLOAT32_UP_TO_BYTES else torch.bfloat16


def n_parameters(config: ModelConfig) -> int:
    """Return the number of weights in the matrices of a model."""
    c = config
    attention = c.d_model * c.head_dim * (2 * c.n_heads + 2 * c.n_kv_heads)
    vocabulary = c.vocab_size * c.d_model * (1 if c.tie_embeddings else 2)
    return c.n_layers * (attention + 3 * c.d_model * c.d_ff) + vocabulary


def device_name(device: torch.device) -> str:
    """Return the device for people and for the key of a profile, e.g. "NVIDIA H200" or "AMD EPYC x2 threads"."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    name = 'CPU'
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
    """Return what a measurement depends on: the package's version, the code of the engine room, and torch."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob('*.py')):
        digest.update(file.read_bytes())
    return f'{__version__}+{digest.hexdigest()[:8]}-torch{torch.__version__}'
