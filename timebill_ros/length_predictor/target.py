# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The target model as the predictor's tools see it.

Everything here is batched over many prompts and runs in transformers, apart from the engine, which
answers one query as fast as it can.
"""

from dataclasses import dataclass
import hashlib
import json
from pathlib import Path
from typing import Any, Sequence

import torch

from timebill_ros.query import Sampling


@dataclass
class Target:
    """A causal language model of transformers with its tokenizer, on one device."""

    model: Any  # transformers' ...ForCausalLM, in eval mode
    tokenizer: Any
    eos_ids: tuple[int, ...]
    key: str  # see target_key

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return torch.device(self.model.device)

    def prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Return each prompt's ids as a user turn under the chat template, up to the answer."""
        texts = [
            self.tokenizer.apply_chat_template(
                [{'role': 'user', 'content': prompt}], add_generation_prompt=True, tokenize=False
            )
            for prompt in prompts
        ]
        if not texts:
            return []
        return [list(ids) for ids in self.tokenizer(texts, add_special_tokens=False)['input_ids']]


def load_target(directory: Path, device: str, dtype: str) -> Target:
    """Load a checkpoint in the Hugging Face layout; ``dtype`` is a torch dtype's name."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from timebill_ros.length_predictor import attention

    model = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=getattr(torch, dtype),
        attn_implementation=attention.NAME,
        local_files_only=True,
        trust_remote_code=False,
    )
    model = model.to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(
        directory, local_files_only=True, trust_remote_code=False
    )
    eos = model.generation_config.eos_token_id
    eos_ids = tuple(eos) if isinstance(eos, (list, tuple)) else (int(eos),)
    return Target(model, tokenizer, eos_ids, target_key(directory))


def target_key(directory: Path) -> str:
    """
    Return the identity of a target, wherever it lies and in whichever precision it runs.

    A hash of the configuration's shape, the chat template and a sample of the embedding table, so
    that a fine-tuned copy of a model is another target, and a predictor trained for one is refused
    for the other.
    """
    from safetensors import safe_open

    config = json.loads((directory / 'config.json').read_text(encoding='utf-8'))
    shape = {
        name: config.get(name)
        for name in (
            'model_type',
            'num_hidden_layers',
            'hidden_size',
            'num_attention_heads',
            'num_key_value_heads',
            'vocab_size',
        )
    }
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
    index = directory / 'model.safetensors.index.json'
    name = 'model.norm.weight'
    file = (
        json.loads(index.read_text(encoding='utf-8'))['weight_map'][name]
        if index.is_file()
        else 'model.safetensors'
    )
    with safe_open(directory / file, framework='pt') as weights:
        # bfloat16 whatever the file holds: a conversion of the same model to half precision is the
        # same target
        norm = weights.get_tensor(name).to(torch.bfloat16).view(torch.int16).numpy()
    digest.update(norm.tobytes())
    return f'{config.get("model_type")}-{digest.hexdigest()[:16]}'


def sampling_key(sampling: Sampling, cap: int) -> dict[str, Any]:
    """Return the settings that a length depends on, as the length file has them."""
    return {
        'temperature': sampling.temperature,
        'top_p': sampling.top_p,
        'top_k': sampling.top_k,
        'repetition_penalty': sampling.repetition_penalty,
        'seed': sampling.seed,
        'cap': cap,
    }


def batches_by_length(
    lengths: Sequence[int], max_rows: int, max_tokens: int, extra: int
) -> list[list[int]]:
    """
    Group indices of prompts into batches of similar length, longest first.

    A batch has at most ``max_rows`` rows and rows * (longest prompt + ``extra``) <=
    ``max_tokens``, at least one row.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        rows = max(1, min(max_rows, max_tokens // (lengths[order[start]] + extra)))
        batches.append(order[start : start + rows])
        start += rows
    return batches
