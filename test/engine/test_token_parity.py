# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Greedy answers are token for token what transformers' ``generate`` gives."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config)

from timebill_ros.engine.engine import Engine
from timebill_ros.executor.messages import Load
from timebill_ros.query import Sampling, Turn

STORY = 'The robot rolled into the kitchen, saw the cups and asked who had used the blue one. '
PROMPTS = {
    'short': 'What is the capital of France?',
    'beyond one chunk': STORY * 12 + 'Who asked, and what about?',
    'not only English': 'Übersetze „Guten Morgen, Roboter 🤖!“ ins Französische.',
}
SHAPE: dict[str, Any] = {
    'vocab_size': 300, 'num_hidden_layers': 3, 'intermediate_size': 96, 'hidden_act': 'silu',
    'max_position_embeddings': 512, 'eos_token_id': 299, 'bos_token_id': 298, 'pad_token_id': 297}
LLAMA3 = {'rope_type': 'llama3', 'rope_theta': 10000.0, 'factor': 8.0, 'low_freq_factor': 1.0,
          'high_freq_factor': 4.0, 'original_max_position_embeddings': 128}
YARN = {'rope_type': 'yarn', 'rope_theta': 10000.0, 'factor': 4.0,
        'original_max_position_embeddings': 128}
LONGROPE = {'rope_type': 'longrope', 'rope_theta': 10000.0, 'short_factor': [1.2] * 8,
            'long_factor': [2.0] * 8, 'original_max_position_embeddings': 380}


def heads(query: int, kv: int, width: int = 16) -> dict[str, int]:
    return {'num_attention_heads': query, 'num_key_value_heads': kv,
            'hidden_size': query * width, 'head_dim': width}


CONFIGS = {
    'llama, groups of 3, tied': LlamaConfig(**SHAPE, **heads(6, 2), tie_word_embeddings=True),
    'llama, no groups, llama3 rope': LlamaConfig(**SHAPE, **heads(4, 4), rope_parameters=LLAMA3),
    'llama, groups of 8, all biases': LlamaConfig(
        **SHAPE, **heads(8, 1), attention_bias=True, mlp_bias=True),
    'llama, groups of 2, longrope': LlamaConfig(**SHAPE, **heads(4, 2), rope_parameters=LONGROPE),
    'qwen2, groups of 7': Qwen2Config(**SHAPE, **heads(14, 2)),
    'qwen2, tied, yarn': Qwen2Config(
        **SHAPE, **heads(4, 2), tie_word_embeddings=True, rope_parameters=YARN),
    'qwen3, wide heads': Qwen3Config(**SHAPE, **{**heads(8, 2), 'head_dim': 32}),
    'qwen3, groups of 3, bias': Qwen3Config(**SHAPE, **heads(6, 2), attention_bias=True),
    'mistral, groups of 4': MistralConfig(**SHAPE, **heads(8, 2), sliding_window=None),
}


@pytest.fixture(scope='module')
def oracle(embedded_directory: Path) -> Any:
    """Return the embedded model in transformers."""
    return AutoModelForCausalLM.from_pretrained(embedded_directory, dtype=torch.float32)


def answer(engine: Engine, ids: list[int], cap: int, sampling: Sampling) -> list[int]:
    """Return the engine's response, the end token included."""
    seq = engine.open_sequence(ids, len(ids) + cap, sampling)
    try:
        while not engine.prefill_chunk(seq):
            pass
        engine.next_token(seq)
        while len(seq.tokens) < cap and seq.tokens[-1] not in engine.end_ids:
            engine.decode_step([seq])
        return seq.tokens
    finally:
        engine.close(seq)


def generate(model: Any, ids: list[int], cap: int, penalty: float) -> list[int]:
    """Return the response of transformers' ``generate``."""
    out = model.generate(
        torch.tensor([ids]), max_new_tokens=cap, do_sample=False, repetition_penalty=penalty)
    return list(out[0, len(ids):].tolist())


@pytest.mark.parametrize('prompt', PROMPTS)
@pytest.mark.parametrize('penalty', [1.0, 1.2])
def test_the_embedded_model(embedded: Engine, oracle: Any, prompt: str, penalty: float) -> None:
    ids = embedded.tokenize([Turn('user', PROMPTS[prompt])])
    assert answer(embedded, ids, 24, Sampling(repetition_penalty=penalty)) == generate(
        oracle, ids, 24, penalty)


@pytest.mark.parametrize('name', CONFIGS)
def test_a_small_model_of_each_kind(name: str, make_checkpoint: Any) -> None:
    directory = make_checkpoint(CONFIGS[name])
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    engine = Engine.load(Load(str(directory), device='cpu', dtype='float32', prefill_chunk=48))
    generator = torch.Generator().manual_seed(5)
    for n_prompt, penalty in ((1, 1.0), (20, 1.3), (48, 1.0), (130, 1.0), (300, 1.3)):
        ids = torch.randint(0, 297, (n_prompt,), generator=generator).tolist()
        assert answer(engine, ids, 40, Sampling(repetition_penalty=penalty)) == generate(
            model, ids, 40, penalty), (n_prompt, penalty)


def test_sequences_that_step_together_do_not_touch_each_other(make_checkpoint: Any) -> None:
    from timebill_ros.engine.config import read_config
    from timebill_ros.engine.decoder import Decoder
    from timebill_ros.engine.kv_cache import allocate
    from timebill_ros.engine.rope import rope_table
    from timebill_ros.engine.weights import load_weights
    directory, cpu = make_checkpoint(CONFIGS['qwen3, groups of 3, bias']), torch.device('cpu')
    config = read_config(directory)
    cache = allocate(config, 3, 64, torch.float32, cpu)
    decoder = Decoder(
        config, load_weights(directory, config, cpu, torch.float32), rope_table(config, 64, cpu),
        cache)
    prompts = {2: [5, 9, 11], 0: [7, 250, 3, 19, 40, 41]}
    with torch.inference_mode():
        alone = {}
        for slot, ids in prompts.items():
            decoder.prefill_chunk(slot, torch.tensor(ids), None, True)
            alone[slot] = decoder.step([slot], torch.tensor([17]))[0]
            cache.reset(slot)
            decoder.prefill_chunk(slot, torch.tensor(ids), None, True)
        together = decoder.step([2, 0], torch.tensor([17, 17]))
    torch.testing.assert_close(together, torch.stack([alone[2], alone[0]]))
    assert cache.length == [7, 0, 4] and cache.position == [7, 0, 4]
