# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The shape of a model: what the engine needs to know of a checkpoint's ``config.json``."""

from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any, Optional

from timebill_ros.engine.errors import ModelError

FAMILIES = ('llama', 'qwen2', 'qwen3', 'mistral')

# Rotary scalings whose frequencies depend on the length of the running sequence. One table is exact
# for them only up to the length that they were trained with, so the context is limited to it.
_LENGTH_DEPENDENT_ROPE = ('dynamic', 'longrope')


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder with grouped-query attention, rotary positions and a gated SiLU MLP."""

    family: str                   # one of FAMILIES
    n_layers: int
    d_model: int
    n_heads: int                  # query heads
    n_kv_heads: int
    head_dim: int
    d_ff: int
    vocab_size: int
    norm_eps: float
    max_positions: int            # tokens; longest sequence that is computed exactly
    eos_ids: tuple[int, ...]      # tokens that end a response
    rope: dict[str, Any]          # rotary parameters as transformers keeps them ("rope_type", ...)
    attention_bias: bool          # q, k, v have a bias
    output_bias: bool             # o has a bias
    mlp_bias: bool
    qk_norm: bool                 # RMS norm per head on q and k before the rotation
    tie_embeddings: bool
    sliding_window: Optional[int] = None    # the window that limited max_positions, if one did
    rope_positions: int = 0       # max_position_embeddings: scalings refer to it; 0 = max_positions

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.n_heads // self.n_kv_heads

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that the KV cache holds for each token, over all layers."""
        return 2 * self.n_layers * self.n_kv_heads * self.head_dim

    @property
    def n_parameters(self) -> int:
        """Weights in the matrices of the model."""
        attention = self.d_model * self.head_dim * 2 * (self.n_heads + self.n_kv_heads)
        vocabulary = self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2)
        return self.n_layers * (attention + 3 * self.d_model * self.d_ff) + vocabulary


def read_config(directory: Path) -> ModelConfig:
    """
    Read ``config.json`` and ``generation_config.json`` of a checkpoint.

    Raises ModelError for an architecture that the engine does not compute exactly.
    """
    raw = read_json(directory / 'config.json')
    if raw is None:
        raise ModelError(f'{directory} has no config.json: not a model in the Hugging Face layout')
    _refuse_unsupported(raw, directory)
    from transformers import AutoConfig
    try:
        config = AutoConfig.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:      # its validators raise many kinds
        raise ModelError(f'{directory}: config.json is not valid: {error}') from error
    _refuse_impossible(config, directory)
    family = config.model_type
    max_positions, window = _limit_positions(config)
    qkv_bias = family == 'qwen2' or bool(getattr(config, 'attention_bias', False))
    head_dim = getattr(config, 'head_dim', None)
    return ModelConfig(
        family=family,
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        head_dim=head_dim or config.hidden_size // config.num_attention_heads,
        d_ff=config.intermediate_size,
        vocab_size=config.vocab_size,
        norm_eps=config.rms_norm_eps,
        max_positions=max_positions,
        eos_ids=_eos_ids(directory / 'generation_config.json', config),
        rope=dict(config.rope_parameters),
        attention_bias=qkv_bias,
        output_bias=qkv_bias and family != 'qwen2',
        mlp_bias=bool(getattr(config, 'mlp_bias', False)),
        qk_norm=family == 'qwen3',
        tie_embeddings=bool(config.tie_word_embeddings),
        sliding_window=window,
        rope_positions=config.max_position_embeddings)


def read_json(path: Path) -> Optional[dict[str, Any]]:
    """Return a file's JSON object, None if there is no file; raises ModelError if it is broken."""
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding='utf-8')))
    except (ValueError, TypeError) as error:
        raise ModelError(f'{path} is not a valid JSON object: {error}') from error


def _refuse_unsupported(raw: dict[str, Any], directory: Path) -> None:
    family = raw.get('model_type')
    if family not in FAMILIES:
        raise ModelError(f'{directory}: architecture {family!r} is not supported; '
                         f'supported are {", ".join(FAMILIES)}')
    architectures = raw.get('architectures') or []
    for architecture in architectures if isinstance(architectures, list) else [architectures]:
        if not str(architecture).endswith('ForCausalLM'):
            raise ModelError(f'{directory}: {architecture} does not generate text; '
                             'a ...ForCausalLM checkpoint is needed')
    quantization = raw.get('quantization_config')
    if quantization:
        method = quantization
        if isinstance(quantization, dict):
            method = quantization.get('quant_method', 'of an unknown kind')
        raise ModelError(f'{directory}: quantised checkpoints ({method}) are not supported; '
                         'use the unquantised one or a GGUF file')
    activation = raw.get('hidden_act', 'silu')
    if activation != 'silu':
        raise ModelError(f'{directory}: activation {activation!r} is not supported; silu is')


def _refuse_impossible(config: Any, directory: Path) -> None:
    """Raise ModelError for sizes that no model has; whether they are the weights' shows later."""
    for name in ('num_hidden_layers', 'hidden_size', 'num_attention_heads', 'num_key_value_heads',
                 'head_dim', 'intermediate_size', 'vocab_size', 'max_position_embeddings',
                 'sliding_window'):
        size = getattr(config, name, None)
        if size is not None and size < 1:
            raise ModelError(f'{directory}: {name} {size} in config.json is less than 1')
    if config.num_attention_heads % config.num_key_value_heads:
        raise ModelError(f'{directory}: {config.num_attention_heads} query heads cannot share '
                         f'{config.num_key_value_heads} KV heads evenly')


def _limit_positions(config: Any) -> tuple[int, Optional[int]]:
    """Return the longest exact context, and the sliding window if that is what limits it."""
    limit = int(config.max_position_embeddings)
    rope = config.rope_parameters
    if rope.get('rope_type') in _LENGTH_DEPENDENT_ROPE:
        limit = min(limit, int(rope.get('original_max_position_embeddings') or limit))
    window = getattr(config, 'sliding_window', None)
    layer_types = getattr(config, 'layer_types', None)
    if layer_types is not None and 'sliding_attention' not in layer_types:
        window = None
    if window is not None and window < limit:
        return int(window), int(window)
    return limit, None


def _eos_ids(generation_config: Path, config: Any) -> tuple[int, ...]:
    """
    Return the end tokens of the generation config, else of the model config.

    Not the tokenizer's: loaded from a GGUF file, it was seen to name another token.
    """
    generation = read_json(generation_config) or {}
    for eos in (generation.get('eos_token_id'), getattr(config, 'eos_token_id', None)):
        if eos is not None:
            ids = eos if isinstance(eos, (list, tuple)) else [eos]
            if not all(type(each) is int for each in ids):
                raise ModelError(f'{generation_config}: eos_token_id {eos!r} is no token, nor a '
                                 'list of tokens')
            return tuple(ids)
    return ()
