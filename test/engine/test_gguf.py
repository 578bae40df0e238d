# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""GGUF files: what they are turned into, once, whole, and by one process at a time."""

import hashlib
import json
from pathlib import Path
import signal
import subprocess
import sys
from typing import Any

from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize
import numpy as np
import pytest
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
import torch
from transformers import LlamaConfig, Qwen3Config

from timebill_ros.engine import gguf_convert
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.errors import ModelError
from timebill_ros.engine.gguf_config import llama3_rope
from timebill_ros.engine.gguf_convert import converted
from timebill_ros.executor.messages import Load
from timebill_ros.query import Turn

SHAPE: dict[str, Any] = {
    'vocab_size': 260, 'hidden_size': 64, 'intermediate_size': 96, 'num_hidden_layers': 2,
    'num_attention_heads': 4, 'num_key_value_heads': 2, 'max_position_embeddings': 128,
    'eos_token_id': 256, 'bos_token_id': 257, 'pad_token_id': None}
NAMES = {
    'model.embed_tokens': 'token_embd', 'model.norm': 'output_norm', 'lm_head': 'output',
    'input_layernorm': 'attn_norm', 'post_attention_layernorm': 'ffn_norm',
    'self_attn.q_proj': 'attn_q', 'self_attn.k_proj': 'attn_k', 'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output', 'self_attn.q_norm': 'attn_q_norm',
    'self_attn.k_norm': 'attn_k_norm', 'mlp.gate_proj': 'ffn_gate', 'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down'}


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition('.')
    if stem.startswith('model.layers.'):
        _, _, layer, part = stem.split('.', 3)
        return f'blk.{layer}.{NAMES[part]}.{kind}'
    return f'{NAMES[stem]}.{kind}'


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Order the rows of q or k as llama.cpp does: pairs of the two halves beside each other."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def write_gguf(directory: Path, file: Path, arch: str, packed: Any = None,
               **metadata: Any) -> Path:
    """Write a checkpoint as llama.cpp's converter does; ``packed`` is a type for the matrices."""
    config = json.loads((directory / 'config.json').read_text())
    writer = GGUFWriter(str(file), arch)
    writer.add_block_count(config['num_hidden_layers'])
    writer.add_context_length(config['max_position_embeddings'])
    writer.add_embedding_length(config['hidden_size'])
    writer.add_feed_forward_length(config['intermediate_size'])
    writer.add_head_count(config['num_attention_heads'])
    writer.add_head_count_kv(config['num_key_value_heads'])
    writer.add_key_length(config['head_dim'])
    writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
    writer.add_rope_freq_base(config['rope_parameters']['rope_theta'])
    for name, value in metadata.items():
        writer.add_float32(name, value)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer.add_tokenizer_model('gpt2')
    writer.add_token_list([*alphabet, '<end>', '<start>', '<a>', 'he'])
    writer.add_token_types([1] * 256 + [3, 3, 3, 1])
    writer.add_token_merges(['h e'])
    writer.add_eos_token_id(256)
    writer.add_bos_token_id(257)
    for name, tensor in load_file(directory / 'model.safetensors').items():
        values = tensor.numpy()
        if arch == 'llama' and 'q_proj' in name:
            values = interleaved(values, config['num_attention_heads'])
        if arch == 'llama' and 'k_proj' in name:
            values = interleaved(values, config['num_key_value_heads'])
        if packed is not None and values.ndim == 2:
            writer.add_tensor(gguf_name(name), quantize(values, packed), raw_dtype=packed)
        else:
            writer.add_tensor(gguf_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope='module')
def llama(make_checkpoint: Any) -> Path:
    return make_checkpoint(LlamaConfig(**SHAPE, tie_word_embeddings=False))


@pytest.fixture
def file(llama: Path, tmp_path: Path) -> Path:
    return write_gguf(llama, tmp_path / 'tiny.gguf', 'llama')


def silent(what: str, done: float) -> None:
    pass


def weights(directory: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob('*.safetensors')):
        found.update(load_file(file))
    return found


def test_the_embedded_model_is_unpacked_as_transformers_unpacks_it(
        embedded_directory: Path) -> None:
    # the hash is that of AutoModelForCausalLM.from_pretrained(..., gguf_file=...) of transformers
    # 5.23 with gguf 0.19, over names and float32 values in alphabetical order
    digest = hashlib.sha256()
    for name, tensor in sorted(weights(embedded_directory).items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    assert digest.hexdigest() == '785e20b3e653276b0579b744214a1186d730ba80af04f397f642d6432e5e0154'


@pytest.mark.parametrize('arch', ['llama', 'qwen3'])
def test_a_file_gives_the_checkpoint_that_it_was_made_of(
        make_checkpoint: Any, tmp_path: Path, arch: str) -> None:
    config = {'llama': LlamaConfig(**SHAPE, tie_word_embeddings=True),
              'qwen3': Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=False)}[arch]
    original = make_checkpoint(config)
    file = write_gguf(original, tmp_path / f'{arch}.gguf', arch)
    told: list[tuple[str, float]] = []
    directory = converted(file, tmp_path / 'models', lambda *each: told.append(each))
    ours, theirs = weights(directory), load_file(original / 'model.safetensors')
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert told[0] == (f'reading {arch}.gguf', 0.0) and told[-1][1] == 1.0
    shares = [round(done, 3) for _, done in told]
    assert shares == sorted(shares)

    from_file = Engine.load(Load(str(file), device='cpu', cache_dir=str(tmp_path)))
    from_original = Engine.load(Load(str(original), device='cpu'))
    ids = from_file.tokenize([Turn('user', 'the he')])
    assert from_file._codec.decode(ids).startswith('User: the he')
    assert from_file.end_ids == (256,) and from_file.info.max_context == 128
    assert from_file.info.family == arch
    logits = []
    for engine in (from_file, from_original):
        seq = engine.open_sequence(ids, len(ids) + 2)
        engine.prefill_chunk(seq)
        logits.append(seq.logits)
    torch.testing.assert_close(logits[0], logits[1])


def test_packed_weights_are_unpacked(llama: Path, tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q8_0
    file = write_gguf(llama, tmp_path / 'q8.gguf', 'llama', packed=kind)
    ours = weights(converted(file, tmp_path / 'models', silent))
    original = load_file(llama / 'model.safetensors')['model.layers.1.mlp.up_proj.weight']
    expected = dequantize(quantize(original.numpy(), kind), kind)
    np.testing.assert_array_equal(ours['model.layers.1.mlp.up_proj.weight'].numpy(), expected)
    assert not torch.equal(ours['model.layers.1.mlp.up_proj.weight'], original)


def test_a_large_model_is_stored_in_bfloat16_and_in_shards(
        file: Path, llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_convert, '_FLOAT32_UP_TO_BYTES', 1000)
    monkeypatch.setattr(gguf_convert, '_SHARD_BYTES', 50000)
    directory = converted(file, tmp_path / 'models', silent)
    assert len(list(directory.glob('*.safetensors'))) > 2
    theirs = load_file(llama / 'model.safetensors')
    assert all(torch.equal(tensor, theirs[name].bfloat16())
               for name, tensor in weights(directory).items())
    Engine.load(Load(str(directory), device='cpu'))


def test_the_copy_is_made_once_and_anew_when_the_file_changes(
        file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / 'models'
    first = converted(file, models, silent)
    with monkeypatch.context() as patch:
        patch.setattr(gguf_convert, '_convert', None)
        assert converted(file, models, silent) == first
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    assert converted(file, models, silent) != first


def test_a_failed_conversion_leaves_nothing_and_the_next_one_works(
        file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = tmp_path / 'models'

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(gguf_convert, 'save_file', no_space)
        with pytest.raises(ModelError, match='cannot be converted into .*No space left'):
            converted(file, models, silent)
    assert [path for path in models.iterdir() if path.is_dir()] == []
    assert converted(file, models, silent).is_dir()


CONVERT = """
import sys, time
from pathlib import Path
from timebill_ros.engine.gguf_convert import converted
def report(what, done):
    print(what, flush=True)
    if what.startswith('unpacking') and len(sys.argv) > 3:
        time.sleep(float(sys.argv[3]))
print(converted(Path(sys.argv[1]), Path(sys.argv[2]), report), flush=True)
"""


def converter(file: Path, models: Path, *pause_s: str) -> 'subprocess.Popen[str]':
    return subprocess.Popen(
        [sys.executable, '-c', CONVERT, str(file), str(models), *pause_s],
        stdout=subprocess.PIPE, text=True)


def test_two_processes_at_once_and_one_that_is_killed(file: Path, tmp_path: Path) -> None:
    models = tmp_path / 'models'
    killed = converter(file, models, '60')
    assert killed.stdout is not None
    for line in killed.stdout:
        if line.startswith('unpacking'):
            break
    waiting = converter(file, models)
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == 'waiting for another process that converts tiny.gguf\n'
    assert [path.name[0] for path in models.iterdir() if path.is_dir()] == ['.']   # unfinished
    killed.send_signal(signal.SIGKILL)
    out, _ = waiting.communicate(timeout=60)
    killed.wait()
    assert waiting.returncode == 0
    directory = Path(out.splitlines()[-1])
    assert [path for path in models.iterdir() if path.is_dir()] == [directory]
    Engine.load(Load(str(directory), device='cpu'))


@pytest.mark.parametrize(('spoil', 'words'), [
    (lambda path: path.write_bytes(b'GGUF but not really'), 'not a readable GGUF'),
    (lambda path: path.write_bytes(b''), 'not a readable GGUF'),
    (lambda path: path.write_bytes(path.read_bytes()[:3000]), 'not a readable GGUF'),
])
def test_a_broken_file_is_refused(file: Path, tmp_path: Path, spoil: Any, words: str) -> None:
    spoil(file)
    with pytest.raises(ModelError, match=words):
        converted(file, tmp_path / 'models', silent)


def test_what_cannot_be_computed_is_refused(
        llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(llama, tmp_path / 'gemma.gguf', 'gemma')
    with pytest.raises(ModelError, match="'gemma' is not supported; supported are llama"):
        converted(file, tmp_path / 'models', silent)
    file = write_gguf(llama, tmp_path / 'part.gguf', 'llama', **{'split.count': 2.0})
    with pytest.raises(ModelError, match='one part of a model'):
        converted(file, tmp_path / 'models', silent)
    monkeypatch.setitem(NAMES, 'mlp.up_proj', 'ffn_up_exps')
    file = write_gguf(llama, tmp_path / 'experts.gguf', 'llama')
    with pytest.raises(ModelError, match='ffn_up_exps'):
        converted(file, tmp_path / 'models', silent)


@pytest.mark.parametrize(('method', 'value', 'words'), [
    ('add_head_count', [4], ''), ('add_head_count', [4, 2], r'head_count is \[4, 2\]'),
    ('add_head_count', 0, 'head_count is 0'), ('add_head_count_kv', 3, 'has 32 rows for 3 heads'),
    ('add_tokenizer_model', 'foo', "its tokenizer cannot be converted: .*'foo'")])
def test_metadata_that_cannot_be_is_named(
        llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, value: Any,
        words: str) -> None:
    add = getattr(GGUFWriter, method)
    monkeypatch.setattr(GGUFWriter, method, lambda writer, _: add(writer, value))
    file = write_gguf(llama, tmp_path / 'odd.gguf', 'llama')
    if not words:
        assert converted(file, tmp_path / 'models', silent).is_dir()
        return
    with pytest.raises(ModelError, match=words):
        converted(file, tmp_path / 'models', silent)


def test_llama_3s_frequency_factors_are_recognised() -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    rope = {'rope_type': 'llama3', 'rope_theta': 500000.0, 'factor': 32.0, 'low_freq_factor': 1.0,
            'high_freq_factor': 4.0, 'original_max_position_embeddings': 8192}
    config = LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=dict(rope),
                         max_position_embeddings=131072)
    scaled, _ = ROPE_INIT_FUNCTIONS['llama3'](config)
    plain = 500000.0 ** (-torch.arange(32, dtype=torch.float64) / 32)
    factors = (plain / scaled.double()).numpy()
    found = llama3_rope(factors, 500000.0, Path('x'))
    assert found.pop('factor') == pytest.approx(rope.pop('factor'), rel=1e-5)
    assert found == rope
    with pytest.raises(ModelError, match='not those of Llama 3'):
        llama3_rope(np.linspace(1.0, 8.0, 32), 500000.0, Path('x'))
