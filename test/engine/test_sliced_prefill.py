# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The prefill of CUDA devices, run on the CPU: the same cache, logits, queries and taps."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from timebill_ros.engine.cuda import sliced_prefill
from timebill_ros.engine.cuda.chunk_layers import choose_chunk, ChunkLayers, MAX_CHUNK
from timebill_ros.engine.cuda.prefill_graphs import PrefillGraphs, stairs
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
                            dtype='float32', tap_layer=TAP, max_batch=3))


def sliced(engine: Engine, chunk_tokens: int, padded: list[int], pace: float = 1e12,
           graph_layers: int = 3) -> SlicedPrefill:
    decoder = engine._decoder
    layers = ChunkLayers(decoder._config, decoder._weights, rope_table(
        decoder._config, 512, torch.device('cpu')))
    work = layers.attend_work(64) + layers.feed_forward_work(64)
    graphs = PrefillGraphs(layers, padded, TAP, graph_layers * work)
    return SlicedPrefill(layers, engine._cache, chunk_tokens, TAP, graphs, pace)


def prompt(n_prompt: int, seed: int = 2) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 297, (n_prompt,), generator=generator).tolist()


def plainly_prefilled(engine: Engine, ids: list[int]) -> dict[str, torch.Tensor]:
    seq = engine.open_sequence(ids, len(ids) + 2)
    while not engine.prefill_chunk(seq):
        pass
    if seq.n_prompt > 32:
        engine._prompt_scores(seq)
    state = state_of(engine, seq)
    engine.close(seq)
    return state


def state_of(engine: Engine, seq: Any) -> dict[str, torch.Tensor]:
    cached = slice(0, seq.n_prompt)
    state = {'logits': seq.logits, 'tap': seq.prompt_state,
             'k': engine._cache.k[:, seq.slot, :, cached].clone(),
             'v': engine._cache.v[:, seq.slot, :, cached].clone()}
    if seq.n_prompt > 32:
        state['scores'] = seq.scores
    else:
        assert seq.scores is None
    return state


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-4, msg=name)


@torch.inference_mode()
@pytest.mark.parametrize('n_prompt,chunk_tokens,padded', [
    (150, 512, []), (150, 64, []), (40, 512, [64, 128]), (100, 512, [64, 128]),
    (128, 512, [64, 128]), (65, 512, [64, 128]), (96, 512, [64, 128]), (5, 512, [64]),
    (32, 512, [64]), (33, 512, [64]), (65, 512, [64])])
@pytest.mark.parametrize('graph_layers', [1, 3])
def test_it_leaves_what_the_decoder_leaves(
        engine: Engine, n_prompt: int, chunk_tokens: int, padded: list[int],
        graph_layers: int) -> None:
    expected = plainly_prefilled(engine, prompt(n_prompt))
    seq = engine.open_sequence(prompt(n_prompt), n_prompt + 2)
    prefill, told = sliced(engine, chunk_tokens, padded, graph_layers=graph_layers), []
    seq.state_submitted = lambda seq: told.append((seq.prompt_state, seq.logits))
    seq.submitted = lambda seq: told.append((seq.prompt_state, seq.logits))
    while not seq.prefill_done:
        seq.n_prefilled += prefill.advance(seq)
    state = seq.prompt_state        # told when there is a state, and at the end
    assert [(a is state, b is seq.logits) for a, b in told] == [(True, False), (True, True)]
    assert_same(state_of(engine, seq), expected)
    assert engine._cache.length[seq.slot] == engine._cache.position[seq.slot] == n_prompt
    engine.close(seq)


@torch.inference_mode()
@pytest.mark.parametrize('alone', [False, True])
def test_prompts_take_turns_between_slices(
        engine: Engine, monkeypatch: pytest.MonkeyPatch, alone: bool) -> None:
    monkeypatch.setattr(sliced_prefill, 'SLICE_S', 0.0)
    prompts = [prompt(n_prompt, seed=n_prompt) for n_prompt in (100, 60, 140)]
    expected = [plainly_prefilled(engine, ids) for ids in prompts]
    prefill = sliced(engine, 512, [64, 128], graph_layers=1)
    sequences = [engine.open_sequence(ids, len(ids) + 2) for ids in prompts]
    while not all(seq.prefill_done for seq in sequences):
        for seq in sequences:
            if not seq.prefill_done:
                seq.n_prefilled += prefill.advance(seq, alone)
    prefill.settle()
    for seq, state in zip(sequences, expected):
        assert_same(state_of(engine, seq), state)
        engine.close(seq)


@torch.inference_mode()
@pytest.mark.parametrize('padded,pieces', [([], 2), ([64, 128], 1)])
@pytest.mark.parametrize('alone', [False, True])
def test_a_slice_ends_after_a_piece_when_time_is_up(
        engine: Engine, monkeypatch: pytest.MonkeyPatch, padded: list[int], pieces: int,
        alone: bool) -> None:
    monkeypatch.setattr(sliced_prefill, 'SLICE_S', 0.0)
    seq = engine.open_sequence(list(range(70)), 80)
    prefill = sliced(engine, 64, padded, graph_layers=1)
    taken, logits = [], []
    while not seq.prefill_done:
        taken.append(prefill.advance(seq, alone))
        seq.n_prefilled += taken[-1]
        logits.append(seq.logits is not None)
    calls = pieces * engine.info.n_layers
    whole = [0] * (calls - 1)
    assert taken == ([*whole, 70] if padded else [*whole, 64, *whole, 6])
    ahead = 2 if alone else 1       # the last slice is on its way one call earlier
    assert logits.index(True) == len(logits) - ahead
    engine.close(seq)


def test_stairs_end_where_launching_takes_no_time(engine: Engine) -> None:
    config = engine._decoder._config
    assert stairs(config, 300) == [64, 128, 192, 256]
    assert stairs(config, 1 << 20)[-1] == MAX_CHUNK
    large = replace(config, n_layers=400_000)
    assert 512 < stairs(large, 1 << 20)[-1] < 8192
    assert 2 * stairs(large, 1 << 20)[-1] * large.n_parameters > 32e12


def test_a_length_that_takes_longer_than_the_next_is_left_out(engine: Engine) -> None:
    graphs = sliced(engine, 512, [64, 128, 192, 256, 384, 512]).graphs
    graphs._leave_out({64: 9.0, 128: 2.0, 192: 3.0, 256: 2.5, 384: 6.0, 512: 5.0})
    assert graphs.lengths == [64, 128, 256, 512]
    graphs._leave_out({64: 9.0, 128: 8.0, 256: 7.0, 512: 5.0})
    assert graphs.lengths == [64, 128, 256, 512]    # a prompt has more than half of its length


def test_a_chunk_is_as_long_as_memory_allows(engine: Engine) -> None:
    config = engine._decoder._config
    chunk, nbytes = choose_chunk(config, 2, 1 << 40)
    assert chunk == MAX_CHUNK and nbytes < 0.1 * (1 << 40)
    shorter, fewer = choose_chunk(config, 2, 10 * (nbytes - nbytes // 4))
    assert 512 <= shorter < chunk and fewer <= nbytes - nbytes // 4
