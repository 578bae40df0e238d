# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
GGUF files, converted once into the cache directory as a checkpoint in the Hugging Face layout.

Reading a GGUF takes seconds to minutes, most of it parsing the vocabulary and unpacking the
weights; the converted copy loads at the speed of the disk.
"""

import fcntl
import hashlib
import json
import os
from pathlib import Path
import shutil
from typing import Any, Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import save_file
import torch
from torch import Tensor

from timebill_ros.engine.errors import ModelError
from timebill_ros.engine.gguf_config import hugging_face_config, hugging_face_name, ROPE_FACTORS

FORMAT_VERSION = 2                       # of the converted copy; a new number converts anew
# Unpacked values are exact in float32. Models above this size are run in bfloat16 anyway and are
# stored so, at half the size.
_FLOAT32_UP_TO_BYTES = 4 * 1024 ** 3
_SHARD_BYTES = 2 * 1024 ** 3
_SAMPLES, _SAMPLE_BYTES = 32, 65536

Report = Callable[[str, float], None]    # what is being done, fraction 0..1


def converted(file: Path, models_dir: Path, report: Report) -> Path:
    """
    Return the directory of the converted copy of ``file``, converting it if there is none yet.

    Safe against interruption (a copy appears whole or not at all) and against two processes at
    once (the second waits for the first). Raises ModelError for what is not supported.
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
            _write_through(unfinished)
            os.rename(unfinished, target)
        except (OSError, SafetensorError) as error:
            raise ModelError(f'{file} cannot be converted into {models_dir}: {error}') from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _write_through(directory: Path) -> None:
    """Bring the files to the disk, so that no loss of power leaves a whole directory of halves."""
    for path in (*directory.iterdir(), directory):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _fingerprint(file: Path) -> str:
    """Return a hash of the size and of samples over the whole file: telling, and quick."""
    size = file.stat().st_size
    digest = hashlib.sha256(f'{FORMAT_VERSION}:{size}'.encode())
    with open(file, 'rb') as stream:
        for index in range(_SAMPLES + 1):
            stream.seek(index * max(0, size - _SAMPLE_BYTES) // _SAMPLES)
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def _convert(file: Path, directory: Path, report: Report) -> None:
    report(f'reading {file.name}', 0.0)
    reader = _open(file)
    config = hugging_face_config(reader, file)
    n_bytes = 4 * sum(int(tensor.n_elements) for tensor in reader.tensors)
    dtype = torch.float32 if n_bytes <= _FLOAT32_UP_TO_BYTES else torch.bfloat16
    config['dtype'] = str(dtype).split('.')[1]
    _save_weights(
        _tensors(reader, config, dtype, file), directory, len(reader.tensors),
        lambda fraction: report(f'unpacking {file.name}', 0.2 + 0.4 * fraction))
    (directory / 'config.json').write_text(json.dumps(config, indent=2), encoding='utf-8')
    tokens = {name: config[name] for name in ('bos_token_id', 'eos_token_id')}
    (directory / 'generation_config.json').write_text(json.dumps(tokens), encoding='utf-8')
    report(f'converting the tokenizer of {file.name}', 0.6)
    _save_tokenizer(file, directory)
    report(f'converted {file.name}', 1.0)


def _save_tokenizer(file: Path, directory: Path) -> None:
    from transformers import AutoTokenizer
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True)
    except Exception as error:      # the library raises whatever its parsers do
        raise ModelError(f'{file}: its tokenizer cannot be converted: {error}') from error
    tokenizer.save_pretrained(directory)


def _open(file: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ModelError(f'{file}: reading GGUF needs the package gguf; install it with: '
                         'pip install gguf') from error
    try:
        return GGUFReader(file)
    except (OSError, ValueError, IndexError, KeyError) as error:
        raise ModelError(f'{file} is not a readable GGUF file: {error}') from error


def _tensors(reader: Any, config: dict[str, Any], dtype: torch.dtype,
             file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor unpacked, under its Hugging Face name and in its row order."""
    from gguf.quants import dequantize
    for tensor in reader.tensors:
        if tensor.name == ROPE_FACTORS:
            continue
        try:
            values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        except NotImplementedError as error:
            kind = tensor.tensor_type.name
            raise ModelError(f'{file}: tensors of type {kind} cannot be unpacked') from error
        name = hugging_face_name(tensor.name, file)
        if config['model_type'] == 'llama' and ('.q_proj.' in name or '.k_proj.' in name):
            n_heads = config[
                'num_attention_heads' if '.q_proj.' in name else 'num_key_value_heads']
            if len(values) != n_heads * config['head_dim']:
                raise ModelError(f'{file}: {tensor.name} has {len(values)} rows for {n_heads} '
                                 f'heads of {config["head_dim"]}')
            values = split_halves(values, n_heads)
        yield name, torch.from_numpy(np.array(values, order='C')).to(dtype)


def split_halves(values: NDArray[np.float32], n_heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's interleaving of rotary pairs in the rows of q and k: back to two halves."""
    paired = values.reshape(n_heads, values.shape[0] // n_heads // 2, 2, *values.shape[1:])
    return paired.swapaxes(1, 2).reshape(values.shape)


def _save_weights(tensors: Iterator[tuple[str, Tensor]], directory: Path, count: int,
                  report: Callable[[float], None]) -> None:
    """Write shards of limited size, so that a large model never stands in memory whole."""
    shard: dict[str, Tensor] = {}
    file_of: dict[str, str] = {}
    files: list[str] = []

    def flush() -> None:
        files.append(f'model-{len(files) + 1:05d}.safetensors')
        save_file(shard, directory / files[-1], metadata={'format': 'pt'})
        file_of.update(dict.fromkeys(shard, files[-1]))
        shard.clear()

    for done, (name, tensor) in enumerate(tensors):
        shard[name] = tensor
        if sum(t.numel() * t.element_size() for t in shard.values()) >= _SHARD_BYTES:
            flush()
        report((done + 1) / count)
    if shard:
        flush()
    index = {'metadata': {}, 'weight_map': file_of}
    (directory / 'model.safetensors.index.json').write_text(json.dumps(index), encoding='utf-8')
