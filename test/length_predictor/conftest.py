# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A tiny random language model that stands in for a target where only the mechanics matter."""

import pytest
import torch

from timebill_ros.length_predictor import attention
from timebill_ros.length_predictor.target import Target

END_ID = 2


class WordTokenizer:
    """One id per word, from 3 on; enough of a tokenizer for the collector."""

    def apply_chat_template(self, messages, add_generation_prompt, tokenize):
        """Return the turns' contents, joined."""
        return ' '.join(turn['content'] for turn in messages)

    def __call__(self, texts, add_special_tokens):
        """Return ids that depend on the words alone."""
        return {'input_ids': [
            [3 + sum(map(ord, word)) % 90 for word in text.split()] for text in texts]}


@pytest.fixture(scope='package', autouse=True)
def one_thread():
    """Have tiny models computed by one thread: more of them wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope='session')
def target():
    """Return a two-layer Llama with grouped-query attention, seeded, in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=END_ID,
        bos_token_id=1,
        pad_token_id=0,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation=attention.NAME).eval()
    return Target(model, WordTokenizer(), (END_ID,), 'llama-tiny')
