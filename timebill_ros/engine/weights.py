# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The weights as plain tensors, streamed layer by layer into fused matrices."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Callable, Optional, TYPE_CHECKING, Union

import torch
from torch import Tensor

from timebill_ros.engine.checkpoint import Checkpoint
from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.linear import lay_out

if TYPE_CHECKING:
    from timebill_ros.engine.cuda.quantize import Matrix

Product = Union[Tensor, 'Matrix']       # quantised on CUDA devices where no bf16 weights are kept


@dataclass
class LayerWeights:
    """
    One decoder layer. d = d_model, Hq/Hkv = query/KV heads, D = head_dim, F = d_ff.

    Matrices are [out, in]; on a CPU some are stored column-major (``linear.lay_out``).
    """

    input_norm: Tensor                 # [d]
    qkv: Product                       # [(Hq + 2 Hkv) * D, d], query rows, then keys, then values
    o: Product                         # [d, Hq * D]
    post_norm: Tensor                  # [d]
    gate_up: Product                   # [2 F, d], gate rows first
    down: Product                      # [d, F]
    qkv_bias: Optional[Tensor] = None  # [(Hq + 2 Hkv) * D]
    o_bias: Optional[Tensor] = None    # [d]
    q_norm: Optional[Tensor] = None    # [D]
    k_norm: Optional[Tensor] = None    # [D]
    gate_up_bias: Optional[Tensor] = None   # [2 F]
    down_bias: Optional[Tensor] = None      # [d]


@dataclass
class Weights:
    """A whole model, every tensor in one dtype on one device. V = vocab_size."""

    embed: Tensor                      # [V, d]
    layers: list[LayerWeights]
    final_norm: Tensor                 # [d]
    head: Product                      # [V, d]; the same tensor as embed where tied and laid out so

    scratch: Optional[Tensor] = None   # room for the largest quantised matrix of a layer as bf16

    @property
    def nbytes(self) -> int:
        """Memory of all tensors, each counted once."""
        tensors = [self.embed, self.final_norm]
        if self.head is not self.embed:
            tensors.append(self.head)
        for layer in self.layers:
            values = [getattr(layer, field.name) for field in fields(layer)]
            tensors += [value for value in values if value is not None]
        return sum(t.nbytes for t in tensors)

    def drop_matrices(self) -> None:
        """Give the memory of all products back, for who computes with copies of their own."""
        nothing = self.embed.new_empty(0)
        for layer in self.layers:
            layer.qkv = layer.o = layer.gate_up = layer.down = nothing
        if self.head is not self.embed:
            self.head = nothing


def load_weights(directory: Path, config: ModelConfig, device: torch.device, dtype: torch.dtype,
                 report: Callable[[float], None] = lambda fraction: None,
                 shrink: Callable[[LayerWeights], None] = lambda layer: None) -> Weights:
    """
    Load a safetensors checkpoint; ``report`` gets the fraction done after each layer.

    Only one layer is held twice at any moment, so a model loads in little more than its own size;
    ``shrink`` may replace the matrices of each layer by smaller ones before the next is read.
    Raises ModelError when a tensor is missing or has another shape than the configuration says.
    """
    with Checkpoint(directory, device, dtype) as source:
        embed = source.stack(['model.embed_tokens.weight'], [config.vocab_size], config.d_model)
        layers = []
        for index in range(config.n_layers):
            layers.append(_load_layer(source, config, f'model.layers.{index}.'))
            shrink(layers[-1])
            report((index + 1) / (config.n_layers + 1))
        final_norm = source.stack(['model.norm.weight'], [config.d_model])
        head = embed
        if not config.tie_embeddings:
            head = source.stack(['lm_head.weight'], [config.vocab_size], config.d_model)
        head = lay_out(head)
    report(1.0)
    return Weights(embed=embed, layers=layers, final_norm=final_norm, head=head)


def _load_layer(source: Checkpoint, config: ModelConfig, prefix: str) -> LayerWeights:
    d, width, d_ff = config.d_model, config.head_dim, config.d_ff
    q_rows, kv_rows = config.n_heads * width, config.n_kv_heads * width

    def vector(name: str, size: int) -> Tensor:
        return source.stack([prefix + name], [size])

    def product(names: list[str], rows: list[int], columns: int) -> Tensor:
        return lay_out(source.stack([f'{prefix}{n}.weight' for n in names], rows, columns))

    def bias(present: bool, names: list[str], rows: list[int]) -> Optional[Tensor]:
        return source.stack([f'{prefix}{n}.bias' for n in names], rows) if present else None

    qkv = [f'self_attn.{part}_proj' for part in 'qkv']
    gate_up = ['mlp.gate_proj', 'mlp.up_proj']
    return LayerWeights(
        input_norm=vector('input_layernorm.weight', d),
        qkv=product(qkv, [q_rows, kv_rows, kv_rows], d),
        o=product(['self_attn.o_proj'], [d], q_rows),
        post_norm=vector('post_attention_layernorm.weight', d),
        gate_up=product(gate_up, [d_ff, d_ff], d),
        down=product(['mlp.down_proj'], [d], d_ff),
        qkv_bias=bias(config.attention_bias, qkv, [q_rows, kv_rows, kv_rows]),
        o_bias=bias(config.output_bias, ['self_attn.o_proj'], [d]),
        q_norm=vector('self_attn.q_norm.weight', width) if config.qk_norm else None,
        k_norm=vector('self_attn.k_norm.weight', width) if config.qk_norm else None,
        gate_up_bias=bias(config.mlp_bias, gate_up, [d_ff, d_ff]),
        down_bias=bias(config.mlp_bias, ['mlp.down_proj'], [d]))
