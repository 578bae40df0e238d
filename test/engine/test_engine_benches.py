# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of the engine run on any model and report what they say."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from timebill_ros.engine.engine import Engine
from timebill_ros.engine.loading import load_model, LoadedModel
from timebill_ros.engine.weights import load_weights
from timebill_ros.executor.messages import Load
from timebill_ros.experiments import (
    bench_decode, bench_evict, bench_memory, bench_prefill, bench_tail, engine_bench)
from timebill_ros.experiments.random_model import random_model, SHAPES, write_weights

CONFIG = LlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, eos_token_id=256)


@pytest.fixture(scope='module')
def loaded(make_checkpoint: Any) -> tuple[Engine, LoadedModel]:
    load = Load(str(make_checkpoint(CONFIG)), device='cpu', dtype='float32', predictor='')
    model = load_model(load, lambda what, done: None)
    return Engine(model, load), model


def test_every_benchmark_gives_rows(loaded: tuple[Engine, LoadedModel]) -> None:
    engine, model = loaded
    tiers = engine.info.tiers
    rows = bench_prefill.measure(engine, model, [40, 90], 1)
    assert [row['tokens'] for row in rows] == [40, 90] and all(row['ratio'] > 0 for row in rows)
    rows = bench_decode.measure(engine, model.config, 1e9, [40], [1, 2], 3)
    assert len(rows) == 2 * len(tiers) and all(row['floor_ms'] > 0 for row in rows)
    assert len(bench_evict.evictions(engine, [100], 1)) == len(bench_evict.ALPHAS)
    worth, = bench_evict.worth(engine, model.config, [100], 20, 3)
    assert worth['tokens'] == 100 and 'saved_by_alpha_0.95_ms' in worth
    tail = bench_tail.measure(engine, tiers[0], 40, 30)
    assert tail['0.5'] <= tail['0.99'] <= tail['1']
    rows = bench_memory.measure(engine, 20, 100)
    assert len(rows) == 10 and rows[-1]['queries'] == 20
    assert engine_bench.table(rows).count('\n') == 10
    json.dumps([*rows, tail, worth])


def test_worth_is_steps_saved_less_the_eviction() -> None:
    steps = [{'tier': tier, 'width': 1, 'cached_tokens': n, 'ms': base + 0.001 * n}
             for tier, base in (('bf16', 4.0), ('int8', 2.0)) for n in (100, 1000, 5000)]
    evicted = [{'tokens': 2000, 'alpha': alpha, 'ms': 0.5} for alpha in bench_evict.ALPHAS]
    row, = bench_evict.worth_rows(steps, evicted, [2000], 101)
    assert row['bf16_ms'] == pytest.approx(100 * (4.0 + 0.001 * 2050.5), abs=0.1)
    assert row['saved_by_alpha_0.5_ms'] == pytest.approx(100 * 1.0 - 0.5, abs=0.1)
    assert row['saved_by_alpha_0.95_ms'] == pytest.approx(100 * 1.9 - 0.5, abs=0.1)
    assert row['saved_by_int8_ms'] == pytest.approx(200.0, abs=0.1)


def test_bytes_of_a_step_are_those_of_the_matrices_it_reads(
        loaded: tuple[Engine, LoadedModel]) -> None:
    _, model = loaded
    matrices = [model.weights.head] + [
        getattr(layer, name) for layer in model.weights.layers
        for name in ('qkv', 'o', 'gate_up', 'down')]
    assert bench_decode.weight_bytes(model.config, 'fp32') == sum(each.nbytes for each in matrices)


def test_a_random_model_written_and_loaded_is_the_same(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, 'tiny', {
        'model_type': 'qwen2', 'num_hidden_layers': 2, 'hidden_size': 32,
        'num_attention_heads': 4, 'num_key_value_heads': 2, 'intermediate_size': 48,
        'vocab_size': 300, 'tie_word_embeddings': False, 'rope_theta': 1e6})
    cpu = torch.device('cpu')
    model = random_model(tmp_path, 'tiny', cpu, torch.float32, 100)
    write_weights(tmp_path, model.weights, model.config)
    again = load_weights(tmp_path, model.config, cpu, torch.float32)
    assert torch.equal(again.head, model.weights.head) and model.max_context == 100
    for ours, theirs in zip(model.weights.layers, again.layers):
        for name in ('qkv', 'o', 'gate_up', 'down', 'qkv_bias'):
            assert torch.equal(getattr(ours, name), getattr(theirs, name))
