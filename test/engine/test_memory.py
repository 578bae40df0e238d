# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What does not fit is refused before any work, and the next query is answered."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from timebill_ros.engine import cache_memory
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.errors import EngineError, OutOfMemory, PromptTooLong
from timebill_ros.engine.memory import available_bytes, out_of_memory_as_ours
from timebill_ros.executor.messages import Load

CONFIG = LlamaConfig(
    vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256, eos_token_id=256)
TOKEN_BYTES = 2 * 2 * 2 * 8 * 4         # k and v, layers, KV heads, head_dim, float32


@pytest.fixture(scope='module')
def checkpoint(make_checkpoint: Any) -> Path:
    return make_checkpoint(CONFIG)


@pytest.fixture
def engine(checkpoint: Path) -> Engine:
    return Engine.load(Load(str(checkpoint), device='cpu'))


def answers(engine: Engine, n_prompt: int = 40) -> list[int]:
    seq = engine.open_sequence(list(range(n_prompt)), n_prompt + 4)
    while not engine.prefill_chunk(seq):
        pass
    engine.next_token(seq)
    for _ in range(3):
        engine.decode_step([seq])
    engine.close(seq)
    return seq.tokens


def test_a_cache_beyond_the_limit_is_refused_before_any_work(checkpoint: Path) -> None:
    engine = Engine.load(
        Load(str(checkpoint), device='cpu', kv_memory_bytes=100 * TOKEN_BYTES))
    assert engine.info.kv_bytes_per_token == TOKEN_BYTES
    with pytest.raises(OutOfMemory, match='101 tokens .* kv_memory_bytes'):
        engine.open_sequence(list(range(90)), 101)
    with pytest.raises(OutOfMemory, match='200 tokens'):
        engine.check_memory(200)
    assert len(answers(engine, 96)) == 4        # exactly what fits


def test_a_machine_without_free_memory_refuses_and_recovers(
        engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    before = answers(engine, 40)
    with monkeypatch.context() as patch:
        patch.setattr(cache_memory, 'available_bytes', lambda device: 10 * TOKEN_BYTES)
        # 43 entries are ours from the answer above, and 9 of the 10 free ones may be taken
        assert engine.check_memory(43 + 9) is None
        with pytest.raises(OutOfMemory, match='100 tokens of prompt and response need'):
            engine.open_sequence(list(range(90)), 100)
        assert answers(engine, 40) == before
    assert len(answers(engine, 90)) == 4


def test_no_room_for_a_single_token(checkpoint: Path) -> None:
    with pytest.raises(OutOfMemory, match=f'{TOKEN_BYTES} bytes for each token'):
        Engine.load(Load(str(checkpoint), device='cpu', kv_memory_bytes=TOKEN_BYTES - 1))


@pytest.mark.parametrize('stage', ['prefill_chunk', 'step'])
def test_memory_that_runs_out_in_the_middle_ends_one_query_only(
        engine: Engine, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    expected = answers(engine)
    real, calls = getattr(engine._decoder, stage), 0

    def fail_once(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        result = real(*arguments)
        if calls == 1:
            torch.empty(1 << 60, dtype=torch.uint8)         # torch's own error
        return result

    monkeypatch.setattr(engine._decoder, stage, fail_once)
    seq = engine.open_sequence(list(range(40)), 60)
    with pytest.raises(OutOfMemory, match='are free'):
        engine.prefill_chunk(seq)
        engine.next_token(seq)
        engine.decode_step([seq])
    engine.close(seq)
    assert answers(engine) == expected


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match='something else'):
        with out_of_memory_as_ours('work', torch.device('cpu')):
            raise RuntimeError('something else')


def test_a_machine_has_memory() -> None:
    assert available_bytes(torch.device('cpu')) > 1 << 20


def test_the_prompt_and_one_token_have_to_fit_the_context(engine: Engine) -> None:
    with pytest.raises(PromptTooLong, match='256 tokens.*context of 256'):
        engine.open_sequence([1] * 256, 300)
    seq = engine.open_sequence([1] * 255, 300)
    while not engine.prefill_chunk(seq):
        pass
    engine.next_token(seq)
    with pytest.raises(EngineError, match='capacity of 256'):
        engine.decode_step([seq])
    engine.close(seq)


def test_calls_in_the_wrong_order_are_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match='no tokens'):
        engine.open_sequence([], 10)
    seq = engine.open_sequence([1, 2, 3], 10)
    with pytest.raises(EngineError, match='after the prefill'):
        engine.next_token(seq)
    with pytest.raises(EngineError, match='after next_token'):
        engine.decode_step([seq])
    assert engine.prefill_chunk(seq) and engine.prefill_chunk(seq)
    engine.next_token(seq)
    with pytest.raises(EngineError, match='once'):
        engine.next_token(seq)
    engine.close(seq)
    engine.close(seq)
    for call in (engine.prefill_chunk, engine.next_token, lambda s: engine.decode_step([s]),
                 lambda s: engine.evict(s, 0.5)):
        with pytest.raises(EngineError, match='closed'):
            call(seq)
    assert len(answers(engine)) == 4


def test_many_queries_of_mixed_lengths_leave_nothing_behind(engine: Engine) -> None:
    def query(number: int) -> None:
        n_prompt = 1 + 37 * number % 200
        seq = engine.open_sequence(list(range(n_prompt)), n_prompt + 8)
        if number % 5:                                  # every fifth is canceled in the prefill
            while not engine.prefill_chunk(seq):
                pass
            engine.next_token(seq)
            engine.evict(seq, 0.5)
            engine.decode_step([seq])
            engine.evict(seq, 0.8)
        engine.close(seq)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    for number in range(20):
        query(number)
    before, address = tensors(), engine._cache.k.data_ptr()
    for number in range(200):
        query(number)
    assert tensors() == before and engine._cache.k.data_ptr() == address
    assert engine.has_room(256) and not engine._memory._held
    assert len(engine._free_slots) == engine.info.max_batch
