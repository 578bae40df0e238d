# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Which tiers a GPU gets, and what memory is left to prefill and cache: decided before loading."""

import pytest
import torch

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cuda import setup
from timebill_ros.engine.cuda.chunk_layers import choose_chunk, MAX_CHUNK
from timebill_ros.engine.cuda.tiers import tier_bytes

GPU = torch.device('cpu')           # nothing here touches a device
QWEN_7B = ModelConfig(
    family='qwen2', n_layers=28, d_model=3584, n_heads=28, n_kv_heads=4, head_dim=128, d_ff=18944,
    vocab_size=152064, norm_eps=1e-6, max_positions=32768, eos_ids=(0,), rope={},
    attention_bias=True, output_bias=False, mlp_bias=False, qk_norm=False, tie_embeddings=False)
GIB = 1024 ** 3


@pytest.fixture(autouse=True)
def any_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, '_unserved', lambda config, device, dtype, name: None)


def choose(wanted: list[str], free_bytes: int) -> setup.TierChoice:
    return setup.choose_tiers(wanted, QWEN_7B, GPU, torch.bfloat16, free_bytes)


def test_a_tier_that_does_not_fit_is_left_out_with_its_size() -> None:
    assert choose(['bf16', 'int8', 'int4'], 20 * GIB).names == ['bf16', 'int8', 'int4']
    choice = choose(['bf16', 'int8', 'int4'], 5 * GIB)
    assert choice.names == ['bf16', 'int4']
    need = tier_bytes('int8', QWEN_7B) / GIB
    assert choice.notes == [
        f'tier int8 is left out: it needs {need:.2f} GiB and 5.00 GiB are free']
    assert choose(['int8', 'int4'], 0).names == ['bf16']


def test_an_unknown_tier_is_left_out_with_the_known_ones() -> None:
    choice = choose(['fp32', 'int4'], 20 * GIB)
    assert choice.names == ['bf16', 'int4'] and 'bf16, int8, int4' in choice.notes[0]


def test_no_tier_takes_the_room_of_a_chunk_and_a_cache() -> None:
    token_bytes = 57344
    room = setup.reserved_bytes(QWEN_7B, torch.bfloat16, 32768)
    chunk, chunk_bytes = choose_chunk(QWEN_7B, 2, 0)
    assert room == chunk_bytes + 8192 * token_bytes and chunk == 512
    assert setup.reserved_bytes(QWEN_7B, torch.bfloat16, 1000) == chunk_bytes + 1000 * token_bytes


def test_a_chunk_grows_with_the_memory_up_to_a_whole_prompt() -> None:
    chunks = [choose_chunk(QWEN_7B, 2, free * GIB) for free in (4, 16, 24, 64, 128)]
    assert [chunk for chunk, _ in chunks] == sorted(chunk for chunk, _ in chunks)
    assert chunks[0][0] == 512 and chunks[-1] == (MAX_CHUNK, chunks[-2][1])
    assert all(nbytes <= 0.1 * free * GIB for (_, nbytes), free in zip(chunks[1:], (16, 24, 64)))
