# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Evicting again while decoding, several sequences at once, and the tapped hidden states."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.masked_oracle import kept_by_numpy, SEEN, WINDOW
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Qwen3Config

from timebill_ros.budget.kept import kept_tokens
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.errors import EngineError, ModelError, OutOfMemory
from timebill_ros.executor.messages import Load

LAYERS, KV_HEADS = 2, 2
# (share evicted, decode steps after it), one after the other on one sequence
SCHEDULES = ([(0.3, 4), (0.7, 4), (0.9, 3)], [(0.0, 5), (0.6, 5)])


def make_directory(make_checkpoint: Any, group: int) -> Path:
    return make_checkpoint(Qwen3Config(
        vocab_size=300, num_hidden_layers=LAYERS, intermediate_size=96, hidden_size=64,
        num_attention_heads=KV_HEADS * group, num_key_value_heads=KV_HEADS, head_dim=16,
        hidden_act='silu', max_position_embeddings=512, eos_token_id=299), seed=group)


@pytest.fixture(scope='module', params=[1, 3, 4, 7, 8], ids='group {}'.format)
def pair(request: Any, make_checkpoint: Any) -> tuple[Engine, Any]:
    directory = make_directory(make_checkpoint, request.param)
    engine = Engine.load(Load(str(directory), device='cpu', dtype='float32', tap_layer=1))
    return engine, AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation='watched')


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    SEEN.clear()
    yield
    SEEN.clear()


def prompt(n_tokens: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(n_tokens + 1000 * seed)
    return torch.randint(0, 297, (n_tokens,), generator=generator).tolist()


def prefilled(engine: Engine, ids: list[int], room: int = 40) -> Any:
    seq = engine.open_sequence(ids, len(ids) + room)
    while not engine.prefill_chunk(seq):
        pass
    engine.next_token(seq)
    return seq


def masked_decode(oracle: Any, ids: list[int], schedule: list[tuple[float, int]]) -> list[int]:
    """Decode greedily with the full cache; what each eviction would drop is masked from there."""
    past = DynamicCache()
    logits = oracle(torch.tensor([ids]), past_key_values=past).logits
    queries, keys = dict(SEEN.queries), dict(SEEN.keys)
    SEEN.n_prompt = len(ids)
    tokens = [int(logits[0, -1].argmax())]
    for alpha, steps in schedule:
        n_kept = kept_tokens(len(ids), alpha)
        if n_kept < len(ids):
            SEEN.kept.update({
                layer: kept_by_numpy(queries[layer], keys[layer], n_kept) for layer in queries})
        for _ in range(steps):
            logits = oracle(torch.tensor([tokens[-1:]]), past_key_values=past).logits
            tokens.append(int(logits[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize('schedule', SCHEDULES)
def test_evicting_again_leaves_what_a_masked_full_cache_would(
        pair: tuple[Engine, Any], schedule: list[tuple[float, int]]) -> None:
    engine, oracle = pair
    ids = prompt(120)
    seq = prefilled(engine, ids)
    decoded = 0
    for alpha, steps in schedule:
        assert engine.evict(seq, alpha) == kept_tokens(len(ids), alpha) == seq.kept
        for _ in range(steps):
            engine.decode_step([seq])
        decoded += steps
        assert engine._cache.length[seq.slot] == seq.kept + decoded
        assert engine._cache.position[seq.slot] == len(ids) + decoded
    engine.close(seq)
    with torch.inference_mode():
        assert seq.tokens == masked_decode(oracle, ids, schedule)


def test_evicting_in_two_steps_is_evicting_at_once(pair: tuple[Engine, Any]) -> None:
    engine, _ = pair
    caches = []
    for alphas in ((0.2, 0.55, 0.8), (0.8,)):
        seq = prefilled(engine, prompt(200))
        for alpha in alphas:
            engine.evict(seq, alpha)
        caches.append(engine._cache.k[:, seq.slot, :, :seq.kept].clone())
        engine.close(seq)
    assert caches[0].shape[2] == 40 > WINDOW and torch.equal(caches[0], caches[1])


def test_sequences_of_one_batch_do_not_touch_each_other(pair: tuple[Engine, Any]) -> None:
    engine, _ = pair
    lengths, alone = (70, 33, 150), []
    for length in lengths:
        seq = prefilled(engine, prompt(length))
        engine.evict(seq, 0.5)
        for _ in range(8):
            engine.decode_step([seq])
        alone.append(seq.tokens)
        engine.close(seq)
    first, second = prefilled(engine, prompt(70)), prefilled(engine, prompt(33))
    engine.evict(first, 0.5), engine.evict(second, 0.5)
    for _ in range(3):
        engine.decode_step([first, second])
    third = prefilled(engine, prompt(150))      # joins while the others are under way
    engine.evict(third, 0.5)
    for _ in range(5):
        engine.decode_step([third, second, first])
    engine.close(second)                        # leaves; the third goes on
    for _ in range(3):
        engine.decode_step([third])
    engine.close(first), engine.close(third)
    assert [first.tokens, second.tokens, third.tokens] == alone


def test_tapped_states_are_transformers_hidden_states(pair: tuple[Engine, Any]) -> None:
    engine, oracle = pair
    ids, other = prompt(40), prefilled(engine, prompt(50))
    seq = engine.open_sequence(ids, 60)
    assert engine.prompt_state(seq) is None and engine.newest_state(seq) is None
    while not engine.prefill_chunk(seq):
        pass
    engine.next_token(seq)
    assert engine.newest_state(seq) is None     # no decode step yet
    taken = seq.tokens[-1]
    engine.decode_step([other, seq])
    with torch.inference_mode():
        states = oracle(torch.tensor([[*ids, taken]]), output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(engine.prompt_state(seq), states[0, -2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(engine.newest_state(seq), states[0, -1], rtol=1e-4, atol=1e-4)
    engine.decode_step([other])
    assert engine.newest_state(seq) is None     # its newest step is not the newest one
    engine.close(seq), engine.close(other)


def test_slots_and_their_memory_are_shared(make_checkpoint: Any) -> None:
    directory = str(make_directory(make_checkpoint, 1))
    token_bytes = 2 * LAYERS * KV_HEADS * 16 * 4
    engine = Engine.load(
        Load(directory, device='cpu', max_batch=2, kv_memory_bytes=100 * token_bytes))
    assert engine.info.max_batch == 2 and engine.prompt_state(prefilled(engine, prompt(20))) is None
    assert engine.has_room(40) and not engine.has_room(41)      # 60 of 100 tokens are promised
    assert engine.check_memory(90) is None                      # it would fit once alone
    with pytest.raises(OutOfMemory, match='41 tokens'):
        engine.open_sequence(prompt(20), 41)
    engine.open_sequence(prompt(20), 40)
    assert not engine.has_room(1)
    with pytest.raises(EngineError, match='slot'):
        engine.open_sequence([1], 2)
    with pytest.raises(ModelError, match='tap_layer 3'):
        Engine.load(Load(directory, device='cpu', tap_layer=3))
