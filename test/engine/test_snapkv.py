# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What is evicted, and that what is left is decoded as if the rest had been masked."""

from collections.abc import Iterator
from math import ceil
from pathlib import Path
from typing import Any

from engine.masked_oracle import Array, assert_as_by_numpy, kept_by_numpy, SEEN, WINDOW
from hypothesis import given, settings, strategies
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache, Qwen3Config

from timebill_ros.engine.engine import Engine
from timebill_ros.engine.errors import EngineError
from timebill_ros.engine.snapkv import select
from timebill_ros.executor.messages import Load
from timebill_ros.query import Turn

LAYERS, HEADS, KV_HEADS, WIDTH = 3, 6, 2, 16
CONFIG = Qwen3Config(
    vocab_size=300, num_hidden_layers=LAYERS, intermediate_size=96, hidden_size=96,
    num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=WIDTH, hidden_act='silu',
    max_position_embeddings=512, eos_token_id=299, bos_token_id=298, pad_token_id=297)


@pytest.fixture(scope='module')
def tiny(make_checkpoint: Any) -> Path:
    return make_checkpoint(CONFIG, seed=3)


@pytest.fixture(scope='module')
def engine(tiny: Path) -> Engine:
    return Engine.load(Load(str(tiny), device='cpu', dtype='float32', prefill_chunk=24))


@pytest.fixture(scope='module')
def oracle(tiny: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        tiny, dtype=torch.float32, attn_implementation='watched')


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    SEEN.clear()
    yield
    SEEN.clear()


def prompt(n_tokens: int) -> list[int]:
    generator = torch.Generator().manual_seed(n_tokens)
    return torch.randint(0, 297, (n_tokens,), generator=generator).tolist()


def prefilled(engine: Engine, ids: list[int]) -> Any:
    seq = engine.open_sequence(ids, len(ids) + 30)
    while not engine.prefill_chunk(seq):
        pass
    return seq


def positions_in_cache(engine: Engine, seq: Any, keys_before: torch.Tensor) -> Array:
    """Find out which entry of the full cache each kept one is, [layers, kv heads, kept]."""
    kept = engine._cache.k[:, seq.slot, :, :engine._cache.length[seq.slot]]
    same = (kept[:, :, :, None] == keys_before[:, :, None]).all(-1)
    assert (same.sum(-1) == 1).all()
    return same.int().argmax(-1).numpy()


@pytest.mark.parametrize('n_prompt', [48, 130, 200])       # a whole last chunk, and parts of one
@pytest.mark.parametrize('alpha', [0.1, 0.5, 0.95])
def test_the_kept_positions_are_those_of_an_independent_snapkv(
        engine: Engine, oracle: Any, n_prompt: int, alpha: float) -> None:
    ids = prompt(n_prompt)
    with torch.inference_mode():
        oracle(torch.tensor([ids]))
    n_kept = max(WINDOW + 1, ceil((1 - alpha) * n_prompt - 1e-6))
    seq = prefilled(engine, ids)
    try:
        before = engine._cache.k[:, seq.slot, :, :n_prompt].clone()
        values = engine._cache.v[:, seq.slot, :, :n_prompt].clone()
        assert engine.evict(seq, alpha) == n_kept == engine._cache.length[seq.slot]
        found = positions_in_cache(engine, seq, before)
        for layer in range(LAYERS):
            expected = kept_by_numpy(SEEN.queries[layer], SEEN.keys[layer], n_kept)
            np.testing.assert_array_equal(found[layer], expected)
            gathered = values[layer].gather(
                1, torch.from_numpy(expected)[:, :, None].expand(-1, -1, WIDTH))
            assert torch.equal(engine._cache.v[layer, seq.slot, :, :n_kept], gathered)
    finally:
        engine.close(seq)


def test_after_eviction_positions_go_on_where_the_prompt_ended(
        engine: Engine, oracle: Any) -> None:
    ids, alpha, steps = prompt(150), 0.6, 12
    seq = prefilled(engine, ids)
    before = engine._cache.k[:, seq.slot, :, :len(ids)].clone()
    first = engine.next_token(seq)
    n_kept = engine.evict(seq, alpha)
    assert engine._cache.position[seq.slot] == 150 and engine._cache.length[seq.slot] == n_kept
    kept = positions_in_cache(engine, seq, before)
    for _ in range(steps):
        engine.decode_step([seq])
    ours, cached = seq.tokens, engine._cache.length[seq.slot]
    engine.close(seq)

    # the oracle keeps its whole cache, so its positions are the logical ones, and masks
    past = DynamicCache()
    with torch.inference_mode():
        logits = oracle(torch.tensor([ids]), past_key_values=past).logits
        theirs = [int(logits[0, -1].argmax())]
        SEEN.n_prompt = len(ids)
        SEEN.kept.update(enumerate(kept))
        for _ in range(steps):
            logits = oracle(torch.tensor([theirs[-1:]]), past_key_values=past).logits
            theirs.append(int(logits[0, -1].argmax()))
    assert ours[0] == first and ours == theirs
    assert cached == n_kept + steps
    assert len(set(ours)) > 3       # the model does not just repeat itself


def test_logits_after_eviction_are_those_of_the_masked_full_cache(
        engine: Engine, oracle: Any) -> None:
    ids = prompt(90)
    seq = prefilled(engine, ids)
    before = engine._cache.k[:, seq.slot, :, :len(ids)].clone()
    engine.evict(seq, 0.5)
    kept = positions_in_cache(engine, seq, before)
    past = DynamicCache()
    with torch.inference_mode():
        oracle(torch.tensor([ids]), past_key_values=past)
        SEEN.n_prompt = len(ids)
        SEEN.kept.update(enumerate(kept))
        for token in (4, 200, 31):
            ours = engine._decoder.step([seq.slot], torch.tensor([token]))[0]
            theirs = oracle(torch.tensor([[token]]), past_key_values=past).logits[0, -1]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    engine.close(seq)


def test_the_embedded_model_decodes_after_eviction_as_with_a_masked_cache(
        embedded: Engine, embedded_directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        embedded_directory, dtype=torch.float32, attn_implementation='watched')
    text = 'The robot rolled into the kitchen and asked who had used the blue cup. ' * 8
    ids = embedded.tokenize([Turn('user', text + 'What did it ask?')])
    seq = prefilled(embedded, ids)
    before = embedded._cache.k[:, seq.slot, :, :len(ids)].clone()
    embedded.next_token(seq)
    n_kept = embedded.evict(seq, 0.5)
    kept = positions_in_cache(embedded, seq, before)
    past = DynamicCache()
    with torch.inference_mode():
        logits = model(torch.tensor([ids]), past_key_values=past, logits_to_keep=1).logits
        for layer in range(len(kept)):
            assert_as_by_numpy(kept[layer], SEEN.queries[layer], SEEN.keys[layer], n_kept)
        theirs = [int(logits[0, -1].argmax())]
        SEEN.n_prompt = len(ids)
        SEEN.kept.update(enumerate(kept))
        for _ in range(10):
            logits = model(torch.tensor([theirs[-1:]]), past_key_values=past).logits
            theirs.append(int(logits[0, -1].argmax()))
            embedded.decode_step([seq])
    assert seq.tokens == theirs
    embedded.close(seq)


def test_a_prompt_within_the_window_is_never_evicted(engine: Engine) -> None:
    for n_prompt in (1, WINDOW - 1, WINDOW):
        seq = prefilled(engine, prompt(n_prompt))
        assert engine.evict(seq, 0.95) == n_prompt == engine._cache.length[seq.slot]
        engine.close(seq)
    seq = prefilled(engine, prompt(WINDOW + 2))
    assert engine.evict(seq, 0.95) == WINDOW + 1
    engine.close(seq)


def test_nothing_is_evicted_at_alpha_0_or_at_the_wrong_time(engine: Engine) -> None:
    ids = prompt(100)
    seq = engine.open_sequence(ids, 130)
    with pytest.raises(EngineError, match='after the prefill'):
        engine.evict(seq, 0.5)
    engine.close(seq)
    seq = prefilled(engine, ids)
    assert engine.evict(seq, 0.0) == 100 == engine._cache.length[seq.slot]
    assert engine.evict(seq, 0.2) == 80
    assert engine.evict(seq, 0.1) == 80 == engine._cache.length[seq.slot]     # nothing comes back
    engine.close(seq)


@settings(max_examples=100, deadline=None)
@given(strategies.data())
def test_among_equal_scores_the_lower_position_is_kept(data: Any) -> None:
    n_scored = data.draw(strategies.integers(2, 40))
    levels = strategies.lists(
        strategies.sampled_from([0.0, 0.25, 0.5]), min_size=n_scored, max_size=n_scored)
    scores = [data.draw(levels), data.draw(levels)]
    n_best = data.draw(strategies.integers(1, n_scored))
    kept = select(torch.tensor(scores), n_best + WINDOW)
    for row, score in zip(kept.tolist(), scores):
        order = sorted(range(n_scored), key=lambda i: (-score[i], i))
        assert row == sorted(order[:n_best]) + list(range(n_scored, n_scored + WINDOW))
