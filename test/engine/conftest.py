# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of the engine room share: the embedded model, its oracle, tiny checkpoints."""

from collections.abc import Callable
import os
from pathlib import Path
from typing import Any

import pytest

from timebill_ros.engine.threads import prepare_environment
prepare_environment()       # before torch is imported, as in the engine process

os.environ['HF_HUB_OFFLINE'] = '1'

MakeCheckpoint = Callable[..., Path]
TAP_LAYER = 18      # that of the shipped probe

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    '{% if add_generation_prompt %}<assistant>{% endif %}')


@pytest.fixture(scope='session')
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> MakeCheckpoint:
    """Return a maker of small random checkpoints with a byte tokenizer: (config, seed) -> path."""
    def make(config: Any, seed: int = 0, template: str = TEMPLATE) -> Path:
        import torch
        from transformers import AutoModelForCausalLM
        directory = tmp_path_factory.mktemp(config.model_type)
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        with torch.no_grad():
            for parameter in model.parameters():      # norms and biases are not left at 1 and 0
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.1))
        model.save_pretrained(directory)
        byte_tokenizer(template).save_pretrained(directory)
        return directory

    return make


def byte_tokenizer(template: str = TEMPLATE) -> Any:
    """Return a tokenizer with one id per byte, and "<end>" as id 256."""
    from tokenizers import decoders, models, pre_tokenizers, Tokenizer
    from transformers import PreTrainedTokenizerFast
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, '<end>'])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token='<end>', chat_template=template or None)


@pytest.fixture(scope='session')
def embedded() -> Any:
    """Return an engine with the embedded model in float32, without a length predictor."""
    from timebill_ros.engine.engine import Engine
    from timebill_ros.executor.messages import Load
    return Engine.load(Load(
        'embedded', dtype='float32', max_context=2048, predictor='', tap_layer=TAP_LAYER))


@pytest.fixture(scope='session')
def embedded_directory() -> Path:
    """Return the converted checkpoint of the embedded model."""
    from timebill_ros.engine.source import find_model
    from timebill_ros.paths import cache_dir
    return find_model('embedded', cache_dir() / 'models', False, lambda what, done: None).directory
