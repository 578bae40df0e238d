# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The prefill of CUDA devices, run on the CPU: the same cache, logits, queries and taps."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from timebill_ros.engine.cuda import sliced_prefill
from timebill_ros.engine.cuda.chunk_layers import choose_chunk, ChunkLayers, MAX_CHUNK
from timebill_ros.engine.cuda.prefill_graphs import PrefillGraphs
from timebill_ros.engine.cuda.sliced_prefill import SlicedPrefill
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.rope import rope_table
from timebill_ros.executor.messages import Load

SHAPE = {'vocab_size': 300, 'num_hidden_layers': 3, 'hidden_size': 96, 'intermediate_size': 64,
         'num_attention_heads': 6, 'num_key_value_heads': 2, 'head_dim': 16,
         'max_position_embeddings': 512, 'eos_token_id': 299}
CONFIGS = (LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True), Qwen2Config(**SHAPE),
           Qwen3Config(**SHAPE))
TAP = 2


@pytest.fixture(scope='module', params=CONFIGS, ids=lambda config: config.model_type)
def engine(request: Any, make_checkpoint: Any) -> Engine:
    return Engine.load(Load(str(make_checkpoint(request.param, seed=1)), device='cpu',
                            dtype='float32', tap_layer=TAP))


def sliced(engine: Engine, chunk_tokens: int, padded: list[int]) -> SlicedPrefill:
    decoder = engine._decoder
    layers = ChunkLayers(decoder._config, decoder._weights, rope_table(
        decoder._config, 512, torch.device('cpu')))
    graphs = PrefillGraphs(layers, 256, TAP)
    graphs.use_plain(padded)
    return SlicedPrefill(layers, engine._cache, chunk_tokens, TAP, graphs)


def state_of(engine: Engine, seq: Any) -> tuple[torch.Tensor, ...]:
    cached = slice(0, seq.n_prompt)
    return (seq.logits, seq.prompt_state, seq.window.queries.clone(),
            engine._cache.k[:, seq.slot, :, cached].clone(),
            engine._cache.v[:, seq.slot, :, cached].clone())


@torch.inference_mode()
@pytest.mark.parametrize('n_prompt,chunk_tokens,padded,filled', [
    (150, 512, [], []), (150, 64, [], []), (130, 128, [], [128]), (40, 512, [64, 128], []),
    (100, 512, [64, 128], []), (128, 512, [64, 128], []), (5, 512, [64], []), (65, 512, [64], []),
    (130, 512, [], [128, 192]), (20, 512, [], [64]), (100, 512, [64], [128]), (64, 512, [], [64])])
def test_it_leaves_what_the_decoder_leaves(
        engine: Engine, monkeypatch: pytest.MonkeyPatch, n_prompt: int, chunk_tokens: int,
        padded: list[int], filled: list[int]) -> None:
    monkeypatch.setattr(SlicedPrefill, '_filled_lengths', lambda self, above=0: [
        length for length in filled if length > above])
    ids = torch.randint(0, 297, (n_prompt,), generator=torch.Generator().manual_seed(2)).tolist()
    seq = engine.open_sequence(ids, n_prompt + 2)
    while not engine.prefill_chunk(seq):
        pass
    expected = state_of(engine, seq)
    engine.close(seq)
    seq = engine.open_sequence(ids, n_prompt + 2)
    prefill, told = sliced(engine, chunk_tokens, padded), []
    seq.state_submitted = lambda seq: told.append((seq.prompt_state, seq.logits))
    seq.submitted = lambda seq: told.append((seq.prompt_state, seq.logits))
    while not seq.prefill_done:
        seq.n_prefilled += prefill.advance(seq)
    state = seq.prompt_state        # told when there is a state, and at the end
    assert [(a is state, b is seq.logits) for a, b in told] == [(True, False), (True, True)]
    window = min(n_prompt, 32)
    for name, ours, theirs in zip(('logits', 'tap', 'queries', 'k', 'v'),
                                  state_of(engine, seq), expected):
        if name == 'queries':       # a shorter prompt than the window is never scored
            ours, theirs = ours[:, :, -window:], theirs[:, :, -window:]
            if n_prompt < 32:
                continue
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=name)
    assert engine._cache.length[seq.slot] == engine._cache.position[seq.slot] == n_prompt
    engine.close(seq)


@torch.inference_mode()
def test_a_slice_ends_between_half_layers_when_time_is_up(
        engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sliced_prefill, 'SLICE_S', 0.0)
    seq = engine.open_sequence(list(range(70)), 80)
    prefill = sliced(engine, 64, [])
    pieces = [prefill.advance(seq)]
    while not seq.prefill_done:
        seq.n_prefilled += pieces[-1]
        if not seq.prefill_done:
            pieces.append(prefill.advance(seq))
    halves = 2 * engine.info.n_layers
    assert pieces == [0] * (halves - 1) + [64] + [0] * (halves - 1) + [6]
    engine.close(seq)


def test_a_chunk_is_as_long_as_memory_allows(engine: Engine) -> None:
    config = engine._decoder._config
    chunk, nbytes = choose_chunk(config, 2, 1 << 40)
    assert chunk == MAX_CHUNK and nbytes < 0.1 * (1 << 40)
    shorter, fewer = choose_chunk(config, 2, 10 * (nbytes - nbytes // 4))
    assert 512 <= shorter < chunk and fewer <= nbytes - nbytes // 4
