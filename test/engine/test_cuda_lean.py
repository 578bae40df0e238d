# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Loading without bf16 weights, on the CPU: the same tiers, and a prefill that uses them."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from timebill_ros.engine.config import read_config
from timebill_ros.engine.cuda import setup
from timebill_ros.engine.cuda.chunk_layers import ChunkLayers
from timebill_ros.engine.cuda.lean import asked_for, LeanTiers
from timebill_ros.engine.cuda.quantize import dequantize, Matrix
from timebill_ros.engine.cuda.tiers import build_tier, int4_group, tier_bytes
from timebill_ros.engine.errors import OutOfMemory
from timebill_ros.engine.rope import rope_table
from timebill_ros.engine.weights import load_weights, Weights

CONFIG = {
    'vocab_size': 300, 'hidden_size': 64, 'intermediate_size': 96, 'num_hidden_layers': 2,
    'num_attention_heads': 4, 'num_key_value_heads': 2, 'head_dim': 64, 'eos_token_id': 256}
CPU, BF16 = torch.device('cpu'), torch.bfloat16


@pytest.mark.parametrize('tied', [False, True])
def test_layers_are_quantised_as_they_come(make_checkpoint: Any, tied: bool) -> None:
    directory = make_checkpoint(LlamaConfig(**CONFIG, tie_word_embeddings=tied))
    config = read_config(directory)
    full = load_weights(directory, config, CPU, BF16)
    lean = LeanTiers(['int8', 'int4'], config)
    weights = load_weights(directory, config, CPU, BF16, shrink=lean.shrink)
    tiers = lean.finish(weights)
    for tier in tiers:
        expected = build_tier(tier.name, full, int4_group(config))
        assert tier.nbytes == tier_bytes(tier.name, config)
        for made, wanted in zip(tier.layers, expected.layers):
            assert torch.equal(made.down.data, wanted.down.data)
            assert torch.equal(made.qkv.scales, wanted.qkv.scales)
        assert torch.equal(tier.head.data, expected.head.data)
    assert all(isinstance(layer.o, Matrix) and layer.o is made.o
               for layer, made in zip(weights.layers, tiers[0].layers))
    assert (weights.head is weights.embed) == tied
    check_prefill(config, weights, full)


@torch.inference_mode()
def check_prefill(config: Any, weights: Weights, full: Weights) -> None:
    """Compare the layers on quantised matrices with the same on what these stand for."""
    for layer, dense in zip(weights.layers, full.layers):
        for name in ('qkv', 'o', 'gate_up', 'down'):
            setattr(dense, name, dequantize(getattr(layer, name)))
    if isinstance(weights.head, Matrix):
        full.head = dequantize(weights.head)
    results = []
    for each in (weights, full):
        layers = ChunkLayers(config, each, rope_table(config, 64, CPU))
        torch.manual_seed(4)
        x = torch.randn(20, config.d_model).to(BF16)
        keys, values = torch.zeros(2, config.n_kv_heads, 20, config.head_dim, dtype=BF16)
        for index in range(config.n_layers):
            layers.attend(index, x, keys, values, 0)
            layers.feed_forward(index, x)
        results.append((x, layers.logits(x[-1:])))
    for ours, theirs in zip(*results):
        assert torch.equal(ours, theirs)


def test_what_fits_is_loaded(make_checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(make_checkpoint(LlamaConfig(**CONFIG)))
    monkeypatch.setattr(setup, '_unserved', lambda *_: None)

    def choose(wanted: list[str], free: int, notes: list[str]) -> Any:
        return setup.lean_tiers(wanted, config, CPU, BF16, free, 512, notes)

    assert choose(['bf16', 'int4'], 10 ** 12, []) is None and not asked_for(['auto', 'int4'])
    notes: list[str] = []
    assert choose(['int4'], 10 ** 12, notes) is not None and 'no bf16 weights' in notes[-1]
    with pytest.raises(OutOfMemory, match='int4 is left out: it needs'):
        choose(['int4'], 1000, [])
    monkeypatch.setattr(setup, '_unserved', lambda *_: 'no such kernels')
    assert choose(['int4'], 1000, []) is None
