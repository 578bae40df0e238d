# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
GGUF files, converted once into the cache directory as a checkpoint in the Hugging Face layout.

Reading a GGUF takes seconds to minutes, most of it parsing the vocabulary and unpacking the weights; the converted
copy loads at the speed of the disk. Weights of small models are kept in float32, which holds unpacked values exactly.
"""

import fcntl
import hashlib
import json
import os
from pathlib import Path
import shutil
from typing import Any, Callable, Dict, Iterator, List, Tuple

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file
import torch
from torch import Tensor

from timebill_ros.engine.errors import ModelError

FORMAT_VERSION = 1                       # of the converted copy; a new number converts anew
_ARCHITECTURES = {'llama': 'LlamaForCausalLM', 'qwen2': 'Qwen2ForCausalLM', 'qwen3': 'Qwen3ForCausalLM'}
_FLOAT32_UP_TO_BYTES = 4 * 1024 ** 3     # larger models are stored in bfloat16: what they are run in, at half the size
_SHARD_BYTES = 2 * 1024 ** 3

_TOP = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head'}
_BLOCK = {
    'attn_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm', 'attn_q': 'self_attn.q_proj',
    'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj', 'attn_output': 'self_attn.o_proj',
    'attn_q_norm': 'self_attn.q_norm', 'attn_k_norm': 'self_attn.k_norm', 'ffn_gate': 'mlp.gate_proj',
    'ffn_up': 'mlp.up_proj', 'ffn_down': 'mlp.down_proj'}
_ROPE_FACTORS = 'rope_freqs.weight'

Report = Callable[[str, float], None]    # what is being done, fraction 0..1


def converted(file: Path, models_dir: Path, report: Report) -> Path:
    """
    Return the directory of the converted copy of ``file``, converting it if there is none yet.

    Safe against interruption (a copy appears whole or not at all) and against two processes at once (the second
    waits for the first). Raises ModelError for what cannot be read or is not supported.
    """
    target = models_dir / f'{file.stem}-{_fingerprint(file)}'
    if target.is_dir():
        return target
    models_dir.mkdir(parents=True, exist_ok=True)
    with open(models_dir / f'.{target.name}.lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report(f'waiting for another process that converts {file.name}', 0.0)
            fcntl.flock(lock, fcntl.LOCK_EX)         # the kernel frees it if the holder dies
        if target.is_dir():
            return target
        unfinished = models_dir / f'.{target.name}.unfinished'
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            _convert(file, unfinished, report)
            os.rename(unfinished, target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _fingerprint(file: Path) -> str:
    """Return a hash of the size and of samples over the whole file: as telling as all of it, in milliseconds."""
    size = file.stat().st_size
    digest = hashlib.sha256(f'{FORMAT_VERSION}:{size}'.encode())
    with open(file, 'rb') as stream:
        for index in range(33):
            stream.seek(index * max(0, size - 65536) // 32)
            digest.update(stream.read(65536))
    return digest.hexdigest()[:16]


def _convert(file: Path, directory: Path, report: Report) -> None:
    report(f'reading {file.name}', 0.0)
    reader = _open(file)
    config = _config(reader, file)
    n_bytes = 4 * sum(int(tensor.n_elements) for tensor in reader.tensors)
    dtype = torch.float32 if n_bytes <= _FLOAT32_UP_TO_BYTES else torch.bfloat16
    _save_weights(_tensors(reader, config, dtype, file), directory, len(reader.tensors),
                  lambda fraction: report(f'unpacking {file.name}', 0.2 + 0.5 * fraction))
    config['dtype'] = str(dtype).split('.')[1]
    (directory / 'config.json').write_text(json.dumps(config, indent=2), encoding='utf-8')
    ends = {name: config[name] for name in ('bos_token_id', 'eos_token_id') if name in config}
    (directory / 'generation_config.json').write_text(json.dumps(ends), encoding='utf-8')
    report(f'converting the tokenizer of {file.name}', 0.7)
    from transformers import AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    tokenizer.save_pretrained(directory)
    report(f'converted {file.name}', 1.0)


def _open(file: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(f'{file}: reading GGUF needs the package gguf; install it with: pip install gguf') from error
    try:
        return GGUFReader(file)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ModelError(f'{file} is not a readable GGUF file: {error}') from error


def _config(reader: Any, file: Path) -> Dict[str, Any]:
    """Return the Hugging Face configuration that the file's metadata describes."""
    def field(name: str, default: Any = None) -> Any:
        entry = reader.get_field(name)
        return default if entry is None else entry.contents()

    arch = field('general.architecture')
    if arch not in _ARCHITECTURES:
        raise ModelError(
            f'{file}: GGUF architecture {arch!r} is not supported; supported are {", ".join(_ARCHITECTURES)}')
    n_heads, d_model = int(field(f'{arch}.attention.head_count')), int(field(f'{arch}.embedding_length'))
    embedding = next(t for t in reader.tensors if t.name == 'token_embd.weight')
    names = {tensor.name for tensor in reader.tensors}
    config = {
        'architectures': [_ARCHITECTURES[arch]], 'model_type': arch, 'hidden_act': 'silu',
        'num_hidden_layers': int(field(f'{arch}.block_count')), 'hidden_size': d_model,
        'intermediate_size': int(field(f'{arch}.feed_forward_length')), 'num_attention_heads': n_heads,
        'num_key_value_heads': int(field(f'{arch}.attention.head_count_kv', n_heads)),
        'head_dim': int(field(f'{arch}.attention.key_length', d_model // n_heads)),
        'rms_norm_eps': float(field(f'{arch}.attention.layer_norm_rms_epsilon')),
        'max_position_embeddings': int(field(f'{arch}.context_length')),
        'vocab_size': int(embedding.shape[1]), 'tie_word_embeddings': 'output.weight' not in names,
        'rope_parameters': _rope(reader, arch, field, file)}
    if arch == 'llama':
        config['attention_bias'] = 'blk.0.attn_q.bias' in names
    for name, key in (('bos_token_id', 'bos'), ('eos_token_id', 'eos')):
        token = field(f'tokenizer.ggml.{key}_token_id')
        if token is not None:
            config[name] = int(token)
    window = field(f'{arch}.attention.sliding_window')
    if window:
        config['sliding_window'] = int(window)
    return config


def _rope(reader: Any, arch: str, field: Callable[..., Any], file: Path) -> Dict[str, Any]:
    """Return the rotary parameters; a table of frequency factors must be the one that Llama 3's rule gives."""
    theta = float(field(f'{arch}.rope.freq_base', 10000.0))
    scaling, factor = field(f'{arch}.rope.scaling.type', 'none'), float(field(f'{arch}.rope.scaling.factor', 1.0))
    original = int(field(f'{arch}.rope.scaling.original_context_length', 0))
    table = [tensor for tensor in reader.tensors if tensor.name == _ROPE_FACTORS]
    if table:
        return _llama3_rope(np.array(table[0].data, dtype=np.float64).ravel(), theta, file)
    if scaling == 'none' or factor == 1.0:
        return {'rope_type': 'default', 'rope_theta': theta}
    if scaling == 'linear':
        return {'rope_type': 'linear', 'rope_theta': theta, 'factor': factor}
    if scaling == 'yarn' and original:
        return {'rope_type': 'yarn', 'rope_theta': theta, 'factor': factor,
                'original_max_position_embeddings': original}
    raise ModelError(f'{file}: rope scaling {scaling!r} of a GGUF is not supported; use the safetensors checkpoint')


def _llama3_rope(factors: NDArray[np.float64], theta: float, file: Path) -> Dict[str, Any]:
    """Recover Llama 3's scaling (factor, low 1, high 4, original 8192) from its table of frequency divisors."""
    factor, low, high, original = float(factors.max()), 1.0, 4.0, 8192
    wavelength = 2 * np.pi * theta ** (np.arange(len(factors)) / len(factors))
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    if not np.allclose(factors, 1.0 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise ModelError(f'{file}: its rope frequency factors are not those of Llama 3; use the safetensors checkpoint')
    return {'rope_type': 'llama3', 'rope_theta': theta, 'factor': factor, 'low_freq_factor': low,
            'high_freq_factor': high, 'original_max_position_embeddings': original}


def _tensors(reader: Any, config: Dict[str, Any], dtype: torch.dtype, file: Path) -> Iterator[Tuple[str, Tensor]]:
    """Yield every tensor unpacked, under its Hugging Face name and in its row order."""
    from gguf.quants import dequantize
    for tensor in reader.tensors:
        if tensor.name == _ROPE_FACTORS:
            continue
        try:
            values = np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32, copy=True)
        except NotImplementedError as error:
            raise ModelError(f'{file}: tensor type {tensor.tensor_type.name} cannot be unpacked') from error
        name = _name(tensor.name, file)
        if config['model_type'] == 'llama' and name.split('.')[-2] in ('q_proj', 'k_proj'):
            heads = config['num_attention_heads' if 'q_proj' in name else 'num_key_value_heads']
            values = _split_halves(values, heads)
        yield name, torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


def _name(name: str, file: Path) -> str:
    stem, _, kind = name.rpartition('.')
    if stem in _TOP:
        return f'{_TOP[stem]}.{kind}'
    parts = stem.split('.')
    if len(parts) == 3 and parts[0] == 'blk' and parts[2] in _BLOCK:
        return f'model.layers.{parts[1]}.{_BLOCK[parts[2]]}.{kind}'
    raise ModelError(f'{file}: tensor {name!r} is not one that the engine knows')


def _split_halves(values: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's interleaving of rotary pairs in the rows of q and k: pairs back to two halves."""
    paired = values.reshape(n_heads, values.shape[0] // n_heads // 2, 2, *values.shape[1:])
    return paired.swapaxes(1, 2).reshape(values.shape)


def _save_weights(tensors: Iterator[Tuple[str, Tensor]], directory: Path, count: int,
                  report: Callable[[float], None]) -> None:
    """Write shards of limited size and their index, so that a large model never stands in memory whole."""
    shard: Dict[str, Tensor] = {}
    files: Dict[str, str] = {}
    names: List[str] = []

    def flush() -> None:
        file = f'model-{len(names) + 1:05d}.safetensors'
        save_file(shard, directory / file, metadata={'format': 'pt'})
        files.update({name: file for name in shard})
        names.append(file)
        shard.clear()

    for done, (name, tensor) in enumerate(tensors):
        shard[name] = tensor
        if sum(t.numel() * t.element_size() for t in shard.values()) >= _SHARD_BYTES:
            flush()
        report((done + 1) / count)
    if shard:
        flush()
    index = {'metadata': {}, 'weight_map': files}
    (directory / 'model.safetensors.index.json').write_text(json.dumps(index), encoding='utf-8')
