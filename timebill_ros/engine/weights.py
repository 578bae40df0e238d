# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The weights as plain tensors, streamed layer by layer from safetensors into fused matrices."""

from contextlib import ExitStack
from dataclasses import dataclass, fields
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from safetensors import safe_open, SafetensorError
import torch
from torch import Tensor

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.errors import ModelError
from timebill_ros.engine.linear import lay_out


@dataclass
class LayerWeights:
    """
    One decoder layer. d = d_model, Hq/Hkv = query/KV heads, D = head_dim, F = d_ff.

    Matrices are [out, in]; on a CPU some are stored column-major (``linear.lay_out``).
    """

    input_norm: Tensor                 # [d]
    qkv: Tensor                        # [(Hq + 2 Hkv) * D, d], query rows first, then keys, then values
    o: Tensor                          # [d, Hq * D]
    post_norm: Tensor                  # [d]
    gate_up: Tensor                    # [2 F, d], gate rows first
    down: Tensor                       # [d, F]
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
    layers: List[LayerWeights]
    final_norm: Tensor                 # [d]
    head: Tensor                       # [V, d]; the same tensor as embed where tied and stored alike

    @property
    def nbytes(self) -> int:
        """Memory of all tensors, each counted once."""
        tensors = [self.embed, self.final_norm] + ([] if self.head is self.embed else [self.head])
        for layer in self.layers:
            tensors += [t for t in (getattr(layer, f.name) for f in fields(layer)) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)


def load_weights(directory: Path, config: ModelConfig, device: torch.device, dtype: torch.dtype,
                 report: Callable[[float], None] = lambda fraction: None) -> Weights:
    """
    Load a safetensors checkpoint; ``report`` gets the fraction done after each layer.

    Only one layer's tensors are held twice at any moment, so a model loads in little more than its own size.
    Raises ModelError when a tensor is missing or has another shape than the configuration says.
    """
    with ExitStack() as stack:
        source = _Checkpoint(directory, stack, device, dtype)
        embed = source.stack([('model.embed_tokens.weight', config.vocab_size)], config.d_model)
        layers = []
        for index in range(config.n_layers):
            layers.append(_load_layer(source, config, f'model.layers.{index}.'))
            report((index + 1) / (config.n_layers + 1))
        final_norm = source.take([('model.norm.weight', config.d_model)])
        if config.tie_embeddings:
            head = lay_out(embed)
        else:
            head = source.take([('lm_head.weight', config.vocab_size)], config.d_model)
    report(1.0)
    return Weights(embed=embed, layers=layers, final_norm=final_norm, head=head)


def _load_layer(source: '_Checkpoint', config: ModelConfig, prefix: str) -> LayerWeights:
    d, width, d_ff = config.d_model, config.head_dim, config.d_ff
    q_rows, kv_rows = config.n_heads * width, config.n_kv_heads * width
    attention, mlp = prefix + 'self_attn.', prefix + 'mlp.'

    def parts(kind: str) -> Tuple[List[Tuple[str, int]], List[Tuple[str, int]]]:
        return ([(f'{attention}{name}_proj.{kind}', rows)
                 for name, rows in (('q', q_rows), ('k', kv_rows), ('v', kv_rows))],
                [(f'{mlp}{name}_proj.{kind}', d_ff) for name in ('gate', 'up')])

    qkv, gate_up = parts('weight')
    qkv_bias, gate_up_bias = parts('bias')
    take = source.take
    return LayerWeights(
        input_norm=take([(prefix + 'input_layernorm.weight', d)]),
        qkv=take(qkv, d),
        o=take([(attention + 'o_proj.weight', d)], q_rows),
        post_norm=take([(prefix + 'post_attention_layernorm.weight', d)]),
        gate_up=take(gate_up, d),
        down=take([(mlp + 'down_proj.weight', d)], d_ff),
        qkv_bias=take(qkv_bias) if config.attention_bias else None,
        o_bias=take([(attention + 'o_proj.bias', d)]) if config.output_bias else None,
        q_norm=take([(attention + 'q_norm.weight', width)]) if config.qk_norm else None,
        k_norm=take([(attention + 'k_norm.weight', width)]) if config.qk_norm else None,
        gate_up_bias=take(gate_up_bias) if config.mlp_bias else None,
        down_bias=take([(mlp + 'down_proj.bias', d)]) if config.mlp_bias else None)


class _Checkpoint:
    """The safetensors files of a directory, read by tensor name."""

    def __init__(self, directory: Path, stack: ExitStack, device: torch.device, dtype: torch.dtype) -> None:
        self._directory = directory
        self._stack = stack
        self._device = device
        self._dtype = dtype
        self._open: Dict[str, Any] = {}
        self._file_of = _index(directory)

    def take(self, parts: List[Tuple[str, int]], columns: int = 0) -> Tensor:
        """Read what ``stack`` reads, a matrix in the layout that products with it want."""
        tensor = self.stack(parts, columns)
        return lay_out(tensor) if columns else tensor

    def stack(self, parts: List[Tuple[str, int]], columns: int = 0) -> Tensor:
        """Read tensors of the given rows (and columns, unless 0) into one, stacked along the rows."""
        rows = sum(count for _, count in parts)
        out = torch.empty((rows, columns) if columns else (rows,), dtype=self._dtype, device=self._device)
        start = 0
        for name, count in parts:
            part = self._read(name)
            expected = (count, columns) if columns else (count,)
            if tuple(part.shape) != expected:
                raise ModelError(f'{self._directory}: tensor {name} has shape {tuple(part.shape)}, '
                                 f'config.json says {expected}')
            out[start:start + count].copy_(part)
            start += count
        return out

    def _read(self, name: str) -> Tensor:
        file = self._file_of.get(name) if self._file_of else 'model.safetensors'
        if file is None:
            raise ModelError(f'{self._directory}: the checkpoint has no tensor {name}')
        try:
            if file not in self._open:
                self._open[file] = self._stack.enter_context(safe_open(self._directory / file, framework='pt'))
            return self._open[file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f'{self._directory / file}: cannot read {name}: {error}') from error


def _index(directory: Path) -> Optional[Dict[str, str]]:
    """Return tensor name to file name, or None where one file holds all."""
    index = directory / 'model.safetensors.index.json'
    if index.is_file():
        files = dict(json.loads(index.read_text(encoding='utf-8'))['weight_map'])
        for file in set(files.values()):
            if Path(file).name != file:
                raise ModelError(f'{index} names a file outside its directory: {file}')
        return files
    if (directory / 'model.safetensors').is_file():
        return None
    if list(directory.glob('*.bin')) or list(directory.glob('*.pt')) or list(directory.glob('*.pth')):
        raise ModelError(
            f'{directory} holds its weights as pickle files (.bin, .pt), which can run code when they are read, '
            f'and are refused; get or convert the model as safetensors')
    if list(directory.glob('*.gguf')):
        raise ModelError(f'{directory} holds GGUF files; give the path of the one to load')
    raise ModelError(f'{directory} has no model.safetensors and no model.safetensors.index.json')
