# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Models of known shapes with random weights: times do not depend on the weights' values."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from timebill_ros.engine.config import ModelConfig, read_config
from timebill_ros.engine.loading import LoadedModel
from timebill_ros.engine.source import ModelSource
from timebill_ros.engine.text import TextCodec
from timebill_ros.engine.weights import LayerWeights, Weights

SHAPES: dict[str, dict[str, Any]] = {
    'qwen2.5-7b': {
        'model_type': 'qwen2', 'num_hidden_layers': 28, 'hidden_size': 3584,
        'num_attention_heads': 28, 'num_key_value_heads': 4, 'intermediate_size': 18944,
        'vocab_size': 152064, 'tie_word_embeddings': False, 'rope_theta': 1e6},
    'qwen2.5-0.5b': {
        'model_type': 'qwen2', 'num_hidden_layers': 24, 'hidden_size': 896,
        'num_attention_heads': 14, 'num_key_value_heads': 2, 'intermediate_size': 4864,
        'vocab_size': 151936, 'tie_word_embeddings': True, 'rope_theta': 1e6},
    'smollm2-135m': {
        'model_type': 'llama', 'num_hidden_layers': 30, 'hidden_size': 576,
        'num_attention_heads': 9, 'num_key_value_heads': 3, 'intermediate_size': 1536,
        'vocab_size': 49152, 'tie_word_embeddings': True, 'rope_theta': 1e5}}
_CONTEXT = 40960


def write_directory(directory: Path, shape: str) -> None:
    """Write configuration and a tokenizer of single bytes; no weights."""
    from tokenizers import decoders, models, pre_tokenizers, Tokenizer
    from transformers import PreTrainedTokenizerFast
    directory.mkdir(parents=True, exist_ok=True)
    (directory / 'config.json').write_text(json.dumps({
        'hidden_act': 'silu', 'rms_norm_eps': 1e-6,
        'max_position_embeddings': _CONTEXT, 'eos_token_id': 256, 'bos_token_id': 256,
        **SHAPES[shape]}))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, '<end>'])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token='<end>').save_pretrained(directory)


def random_model(directory: Path, shape: str, device: torch.device, dtype: torch.dtype,
                 max_context: int = _CONTEXT) -> LoadedModel:
    """Return a model of this shape as if it had been loaded; its directory has no weights."""
    write_directory(directory, shape)
    config = read_config(directory)
    return LoadedModel(
        ModelSource(shape, directory), config, random_weights(config, device, dtype),
        TextCodec(directory), device, dtype, min(max_context, config.max_positions), [])


def random_weights(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Weights:
    """Return weights that keep the hidden states at ordinary sizes."""
    c, generator = config, torch.Generator(device).manual_seed(1)

    def matrix(rows: int, columns: int) -> Tensor:
        made = torch.randn((rows, columns), generator=generator, device=device, dtype=dtype)
        return made.mul_(columns ** -0.5)

    heads, width = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim, c.n_heads * c.head_dim
    ones = torch.ones(c.d_model, device=device, dtype=dtype)
    layers = [LayerWeights(
        input_norm=ones, qkv=matrix(heads, c.d_model), o=matrix(c.d_model, width), post_norm=ones,
        gate_up=matrix(2 * c.d_ff, c.d_model), down=matrix(c.d_model, c.d_ff),
        qkv_bias=torch.zeros(heads, device=device, dtype=dtype) if c.attention_bias else None)
        for _ in range(c.n_layers)]
    embed = matrix(c.vocab_size, c.d_model)
    head = embed if c.tie_embeddings else matrix(c.vocab_size, c.d_model)
    return Weights(embed, layers, ones, head)


def write_weights(directory: Path, weights: Weights, config: ModelConfig) -> None:
    """Write the weights as a checkpoint beside the configuration, one file a layer."""
    from safetensors.torch import save_file
    files: dict[str, str] = {}

    def write(file: str, tensors: dict[str, Tensor]) -> None:
        copies = {name: each.to('cpu', copy=True).contiguous() for name, each in tensors.items()}
        save_file(copies, directory / file)
        files.update(dict.fromkeys(tensors, file))

    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    outer = {'model.embed_tokens.weight': weights.embed, 'model.norm.weight': weights.final_norm}
    if not config.tie_embeddings:
        outer['lm_head.weight'] = weights.head
    write('outer.safetensors', outer)
    for index, layer in enumerate(weights.layers):
        tensors = {'input_layernorm.weight': layer.input_norm,
                   'post_attention_layernorm.weight': layer.post_norm,
                   'self_attn.o_proj.weight': layer.o, 'mlp.down_proj.weight': layer.down}
        for name, part in zip('qkv', layer.qkv.split([q, kv, kv])):
            tensors[f'self_attn.{name}_proj.weight'] = part
        if layer.qkv_bias is not None:
            for name, part in zip('qkv', layer.qkv_bias.split([q, kv, kv])):
                tensors[f'self_attn.{name}_proj.bias'] = part
        for name, part in zip(('gate', 'up'), layer.gate_up.chunk(2)):
            tensors[f'mlp.{name}_proj.weight'] = part
        write(f'layer-{index}.safetensors',
              {f'model.layers.{index}.{name}': each for name, each in tensors.items()})
    (directory / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': files}))
