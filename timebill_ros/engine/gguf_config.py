# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The Hugging Face configuration that a GGUF file's metadata describes, and its tensors' names."""

from pathlib import Path
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from timebill_ros.engine.errors import ModelError

_ARCHITECTURES = {
    'llama': 'LlamaForCausalLM', 'qwen2': 'Qwen2ForCausalLM', 'qwen3': 'Qwen3ForCausalLM'}
ROPE_FACTORS = 'rope_freqs.weight'     # a tensor that is no weight: divisors of rotary frequencies

_TOP = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head'}
_BLOCK = {
    'attn_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm',
    'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj',
    'attn_q_norm': 'self_attn.q_norm', 'attn_k_norm': 'self_attn.k_norm',
    'attn_output': 'self_attn.o_proj', 'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj',
    'ffn_down': 'mlp.down_proj'}


def hugging_face_config(reader: Any, file: Path) -> dict[str, Any]:
    """Return the content of config.json; raises ModelError for what the engine cannot run."""
    fields = _Fields(reader, file)
    arch = fields.get('general.architecture')
    if arch not in _ARCHITECTURES:
        raise ModelError(f'{file}: GGUF architecture {arch!r} is not supported; '
                         f'supported are {", ".join(_ARCHITECTURES)}')
    if int(fields.get('split.count', 1)) > 1:
        raise ModelError(f'{file} is one part of a model in several files; join them with: '
                         'llama-gguf-split --merge')
    shapes = {tensor.name: tensor.shape for tensor in reader.tensors}
    if 'token_embd.weight' not in shapes:
        raise ModelError(f'{file} has no tensor token_embd.weight')
    n_heads = fields.count(f'{arch}.attention.head_count')
    d_model = fields.count(f'{arch}.embedding_length')
    config: dict[str, Any] = {
        'architectures': [_ARCHITECTURES[arch]], 'model_type': arch, 'hidden_act': 'silu',
        'num_hidden_layers': fields.count(f'{arch}.block_count'), 'hidden_size': d_model,
        'intermediate_size': fields.count(f'{arch}.feed_forward_length'),
        'num_attention_heads': n_heads,
        'num_key_value_heads': fields.count(f'{arch}.attention.head_count_kv', n_heads),
        'head_dim': fields.count(f'{arch}.attention.key_length', d_model // n_heads),
        'rms_norm_eps': float(fields.need(f'{arch}.attention.layer_norm_rms_epsilon')),
        'max_position_embeddings': fields.count(f'{arch}.context_length'),
        'vocab_size': int(shapes['token_embd.weight'][1]),
        'tie_word_embeddings': 'output.weight' not in shapes,
        'rope_parameters': _rope(reader, fields, arch, file)}
    if arch == 'llama':
        config['attention_bias'] = 'blk.0.attn_q.bias' in shapes
    ends = [fields.get(f'tokenizer.ggml.{name}_token_id') for name in ('eos', 'eot')]
    config['eos_token_id'] = sorted({int(end) for end in ends if end is not None}) or None
    start = fields.get('tokenizer.ggml.bos_token_id')
    config['bos_token_id'] = None if start is None else int(start)
    window = fields.get(f'{arch}.attention.sliding_window')
    if window:
        config['sliding_window'] = int(window)
    return config


def hugging_face_name(name: str, file: Path) -> str:
    """Return the checkpoint's name of a GGUF tensor; raises ModelError for a new one."""
    stem, _, kind = name.rpartition('.')
    if stem in _TOP:
        return f'{_TOP[stem]}.{kind}'
    parts = stem.split('.')
    if len(parts) == 3 and parts[0] == 'blk' and parts[2] in _BLOCK:
        return f'model.layers.{parts[1]}.{_BLOCK[parts[2]]}.{kind}'
    raise ModelError(f'{file}: tensor {name!r} is not one that the engine knows')


class _Fields:
    """The metadata of a GGUF file."""

    def __init__(self, reader: Any, file: Path) -> None:
        self._reader = reader
        self._file = file

    def get(self, name: str, default: Any = None) -> Any:
        entry = self._reader.get_field(name)
        return default if entry is None else entry.contents()

    def need(self, name: str) -> Any:
        value = self.get(name)
        if value is None:
            raise ModelError(f'{self._file}: its metadata has no {name}')
        return value

    def count(self, name: str, default: Optional[int] = None) -> int:
        """Return a number from 1 on; one for each layer will do if they are the same."""
        value = self.need(name) if default is None else self.get(name, default)
        if isinstance(value, list) and len(set(value)) == 1:
            value = value[0]
        if not isinstance(value, int) or value < 1:
            raise ModelError(f'{self._file}: {name} is {value!r}; a number from 1 on, the same for '
                             'every layer, is needed')
        return value


def _rope(reader: Any, fields: _Fields, arch: str, file: Path) -> dict[str, Any]:
    """Return the rotary parameters; frequency factors must be those that Llama 3's rule gives."""
    theta = float(fields.get(f'{arch}.rope.freq_base', 10000.0))
    table = [tensor for tensor in reader.tensors if tensor.name == ROPE_FACTORS]
    if table:
        return llama3_rope(np.array(table[0].data, dtype=np.float64).ravel(), theta, file)
    scaling = fields.get(f'{arch}.rope.scaling.type', 'none')
    factor = float(fields.get(f'{arch}.rope.scaling.factor', 1.0))
    original = int(fields.get(f'{arch}.rope.scaling.original_context_length', 0))
    if scaling == 'none' or factor == 1.0:
        return {'rope_type': 'default', 'rope_theta': theta}
    if scaling == 'linear':
        return {'rope_type': 'linear', 'rope_theta': theta, 'factor': factor}
    if scaling == 'yarn' and original:
        return {'rope_type': 'yarn', 'rope_theta': theta, 'factor': factor,
                'original_max_position_embeddings': original}
    raise ModelError(f'{file}: rope scaling {scaling!r} of a GGUF file is not supported; '
                     'use the safetensors checkpoint')


def llama3_rope(factors: NDArray[np.float64], theta: float, file: Path) -> dict[str, Any]:
    """
    Recover Llama 3's scaling from its table of frequency divisors [head_dim / 2].

    The largest divisor is the factor; low 1, high 4 and the original 8192 tokens are the same in
    every Llama 3, which is checked against the whole table.
    """
    factor, low, high, original = float(factors.max()), 1.0, 4.0, 8192
    wavelength = 2 * np.pi * theta ** (np.arange(len(factors)) / len(factors))
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    if not np.allclose(factors, 1.0 / ((1 - smooth) / factor + smooth), rtol=1e-3):
        raise ModelError(f'{file}: its rope frequency factors are not those of Llama 3; '
                         'use the safetensors checkpoint')
    return {'rope_type': 'llama3', 'rope_theta': theta, 'factor': factor, 'low_freq_factor': low,
            'high_freq_factor': high, 'original_max_position_embeddings': original}
