# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Compiled CPU steps: packed weights, tiers, batches and processors other than this one."""

from concurrent.futures import ThreadPoolExecutor
import ctypes
from dataclasses import replace
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cpu import build
from timebill_ros.engine.cpu.matrices import BFLOAT16, BLOCK, FLOAT32, INT4, INT8, LANES, Packer
from timebill_ros.engine.cpu.prefill import CompiledPrefill
from timebill_ros.engine.cpu.setup import make_tiers
from timebill_ros.engine.cpu.steps import CompiledSteps
from timebill_ros.engine.cpu.tiers import build_tiers, tier_bytes
from timebill_ros.engine.decoder import Decoder
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.kv_cache import allocate
from timebill_ros.engine.rope import rope_table
from timebill_ros.engine.snapkv import QueryWindow
from timebill_ros.engine.weights import LayerWeights, Weights
from timebill_ros.executor.messages import Load
from timebill_ros.paths import cache_dir

CPU = torch.device('cpu')
CONFIG = ModelConfig(
    family='qwen3', n_layers=2, d_model=96, n_heads=6, n_kv_heads=2, head_dim=48, d_ff=160,
    vocab_size=100, norm_eps=1e-6, max_positions=1024, eos_ids=(0,),
    rope={'rope_type': 'default', 'rope_theta': 10000.0}, attention_bias=True, output_bias=True,
    mlp_bias=True, qk_norm=True, tie_embeddings=False)
LENGTHS = (40, 7, 300)
TIERS = ['fp32', 'int8', 'int4']

pytestmark = pytest.mark.skipif(build.find_compiler() is None, reason='no C++ compiler')


@pytest.fixture(scope='module')
def library():
    return build.library(cache_dir() / 'kernels')


def on_grid(rows, columns, kind):
    """Return a matrix with the values that blocks of a GGUF type stand for."""
    blocks = torch.randn(rows, columns // BLOCK, BLOCK) * 0.05
    if kind == 'q4_1':
        low, high = blocks.amin(2, True), blocks.amax(2, True)
        scale = ((high - low) / 15)
        codes = ((blocks - low) / scale).round().clamp(0, 15)
        return (scale.half().float() * codes + low.half().float()).view(rows, columns)
    if kind == 'q4_0':
        most = blocks.gather(2, blocks.abs().argmax(2, True))
        codes = (blocks / (most / -8) + 8.5).floor().clamp(0, 15)
        return ((most / -8).half().float() * (codes - 8)).view(rows, columns)
    scale = blocks.abs().amax(2, True) / 127
    return (scale.half().float() * (blocks / scale).round()).view(rows, columns)


def unpacked(matrix):
    """Return what a packed matrix stands for, from its layout as documented in matvec.hpp."""
    if matrix.format == FLOAT32:
        return matrix.data
    if matrix.format == BFLOAT16:
        return (matrix.data.view(torch.bfloat16).float().transpose(1, 2)
                .reshape(-1, matrix.columns)[:matrix.rows])
    groups, blocks = matrix.data.shape[:2]
    words = matrix.data.view(groups, blocks, -1, LANES, 4).int()
    if matrix.format == INT8:
        codes = words.permute(0, 3, 1, 2, 4).reshape(groups, LANES, blocks, BLOCK) - 128
    else:
        halves = torch.stack((words & 15, words >> 4), 4)        # [..., lane, half, byte]
        codes = halves.permute(0, 3, 1, 2, 4, 5).reshape(groups, LANES, blocks, BLOCK)
    scales = matrix.scales.view(torch.float16).float().transpose(1, 2)[..., None]
    values = codes * scales[:, :LANES]
    if matrix.format == INT4:
        values = values + scales[:, LANES:]
    return values.reshape(-1, matrix.columns)[:matrix.rows]


@pytest.mark.parametrize('kind,expected', [
    ('q4_1', INT4), ('q4_0', INT4), ('q8_0', INT8), ('bfloat16', BFLOAT16), ('float32', FLOAT32)])
def test_what_a_file_holds_is_found_again_exactly(library, kind, expected):
    torch.manual_seed(1)
    weight = torch.randn(50, 96) * 0.05
    if kind == 'bfloat16':
        weight = weight.bfloat16().float()
    elif kind != 'float32':
        weight = on_grid(50, 96, kind)
    matrix = Packer(library).pack_lossless(weight)
    assert matrix.format == expected
    assert torch.equal(unpacked(matrix), weight)


def test_rounding_stays_within_half_a_step_and_the_scales_rounding(library):
    torch.manual_seed(2)
    weight = torch.randn(33, 64) * torch.logspace(-1, 1, 33)[:, None]
    blocks = weight.view(33, 2, BLOCK)
    packer = Packer(library)
    error = (unpacked(packer.pack(weight, INT8)).view_as(blocks) - blocks).abs().amax(2)
    assert (error <= 0.58 * blocks.abs().amax(2) / 127).all()
    four = unpacked(packer.pack(weight, INT4)).view_as(blocks)
    step = (blocks.amax(2, True) - blocks.amin(2, True)) / 15
    plain = ((blocks - blocks.amin(2, True)) / step).round() * step + blocks.amin(2, True)
    assert (four - blocks).square().sum() < (plain - blocks).square().sum()
    assert not unpacked(packer.pack(torch.zeros(16, 32), INT4)).any()


def random_weights(config, kind='float32'):
    def matrix(rows, columns):
        if kind in ('float32', 'bfloat16'):
            return (torch.randn(rows, columns) * 0.08).to(getattr(torch, kind)).float()
        return on_grid(rows, columns, kind)

    def vector(size, offset=0.0):
        return torch.randn(size) * 0.1 + offset

    torch.manual_seed(3)
    c, d = config, config.d_model
    heads, q = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim, c.n_heads * c.head_dim
    layers = [LayerWeights(
        vector(d, 1), matrix(heads, d), matrix(d, q), vector(d, 1), matrix(2 * c.d_ff, d),
        matrix(d, c.d_ff), vector(heads), vector(d), vector(c.head_dim, 1), vector(c.head_dim, 1),
        vector(2 * c.d_ff), vector(d)) for _ in range(c.n_layers)]
    return Weights(torch.randn(c.vocab_size, d), layers, vector(d, 1), matrix(c.vocab_size, d))


def dense(tier, weights):
    """Return plain weights with the values that a tier's matrices stand for."""
    layers = [LayerWeights(**{
        **vars(layer), 'qkv': unpacked(packed['qkv']), 'o': unpacked(packed['o']),
        'gate_up': torch.cat((unpacked(packed['gate']), unpacked(packed['up']))),
        'down': unpacked(packed['down'])}) for layer, packed in zip(weights.layers, tier.layers)]
    return Weights(weights.embed, layers, weights.final_norm, unpacked(tier.head))


def filled_cache(config, weights):
    """Return a cache with three sequences, one of them evicted to every other entry."""
    torch.manual_seed(5)
    cache = allocate(config, 4, 512, torch.float32, CPU)
    cache.k.zero_(), cache.v.zero_()
    decoder = Decoder(config, weights, rope_table(config, 1024, CPU), cache)
    for slot, length in enumerate(LENGTHS):
        decoder.prefill_chunk(slot, torch.randint(0, config.vocab_size, (length,)), None, True)
    cache.keep(2, torch.arange(0, 300, 2).expand(config.n_layers, config.n_kv_heads, -1))
    return cache


def compiled(library, config, weights, tiers, cache, threads=2):
    return CompiledSteps(library, config, weights, tiers, rope_table(config, 1024, CPU), cache,
                         tap_layer=1, threads=threads)


def copied(cache):
    other = replace(cache, k=cache.k.clone(), v=cache.v.clone())
    other.length, other.position = list(cache.length), list(cache.position)
    return other


SHAPES = {
    'groups of 3': CONFIG,
    'no groups': replace(CONFIG, n_heads=2, n_kv_heads=2, head_dim=32),
    'groups of 4, wide heads': replace(CONFIG, n_heads=4, n_kv_heads=1, head_dim=128),
    'groups of 7': replace(CONFIG, n_heads=14, n_kv_heads=2, head_dim=16),
    'groups of 8': replace(CONFIG, n_heads=8, n_kv_heads=1, head_dim=64),
}


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('kind', ['float32', 'q4_1'])
def test_every_tier_gives_the_logits_of_its_weights(library, shape, kind):
    config = SHAPES[shape]
    weights = random_weights(config, kind)
    tiers, notes = build_tiers(Packer(library), weights, config, TIERS)
    assert [tier.name for tier in tiers] == (TIERS if kind == 'float32' else ['fp32', 'int4'])
    assert bool(notes) == (kind == 'q4_1')
    filled = filled_cache(config, weights)
    for tier in tiers:
        cache, other = copied(filled), copied(filled)
        steps = compiled(library, config, weights, tiers, cache)
        decoder = Decoder(config, dense(tier, weights), rope_table(config, 1024, CPU), other, 1)
        for token in (5, 6):
            logits = steps.run([2, 0, 1], [token] * 3, tier.name)
            expected = decoder.step([2, 0, 1], torch.tensor([token] * 3))
            error = ((logits - expected).norm() / expected.norm()).item()
            assert error < (1e-5 if tier.name == 'fp32' else 0.02), (tier.name, error)
            tap = (steps.tap - decoder.tap).norm() / decoder.tap.norm()
            assert tap < (1e-5 if tier.name == 'fp32' else 0.02)
        assert cache.length == other.length and cache.position == other.position


@pytest.mark.parametrize('kind,tier', [
    *(('float32', tier) for tier in TIERS),
    ('q4_1', 'fp32'), ('q4_1', 'int4'), ('q8_0', 'fp32'), ('bfloat16', 'fp32')])
def test_a_sequence_does_not_notice_who_else_is_in_the_step(library, kind, tier):
    weights = random_weights(CONFIG, kind)
    tiers, _ = build_tiers(Packer(library), weights, CONFIG, TIERS)
    filled = filled_cache(CONFIG, weights)
    slots, tokens = [2, 0, 1], [5, 17, 80]
    alone = []
    cache = copied(filled)
    one = compiled(library, CONFIG, weights, tiers, cache, threads=1)
    for slot, token in zip(slots, tokens):
        alone.append(one.run([slot], [token], tier)[0].clone())
    for width in (2, 3):
        together = compiled(library, CONFIG, weights, tiers, copied(filled), threads=3)
        assert torch.equal(together.run(slots[:width], tokens[:width], tier),
                           torch.stack(alone[:width])), width


def test_the_tier_may_change_at_every_token(library):
    weights = random_weights(CONFIG)
    tiers, _ = build_tiers(Packer(library), weights, CONFIG, TIERS)
    cache = filled_cache(CONFIG, weights)
    other = copied(cache)
    steps = compiled(library, CONFIG, weights, tiers, cache)
    decoders = {tier.name: Decoder(CONFIG, dense(tier, weights), rope_table(CONFIG, 1024, CPU),
                                   other) for tier in tiers}
    for token, tier in enumerate(('int4', 'fp32', 'int8', 'int4', 'fp32')):
        logits = steps.run([0], [token], tier)
        expected = decoders[tier].step([0], torch.tensor([token]))
        assert (logits - expected).norm() / expected.norm() < 0.02


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """Return the library compiled for any processor of this architecture."""
    options = ['-std=c++17', '-O1', '-fPIC', '-shared', '-pthread', '-Wno-psabi']
    path = tmp_path_factory.mktemp('plain') / 'plain.so'
    build.compile_steps(build.find_compiler(), build.sources(), options, path)
    return ctypes.CDLL(str(path))


def test_processors_without_this_ones_instructions_compute_the_same(library, plain):
    weights = random_weights(CONFIG)
    tiers, _ = build_tiers(Packer(library), weights, CONFIG, TIERS)
    filled = filled_cache(CONFIG, weights)
    for tier in TIERS:
        logits = [compiled(each, CONFIG, weights, tiers, copied(filled)).run([2], [5], tier)
                  for each in (library, plain)]
        torch.testing.assert_close(*logits, rtol=2e-3, atol=2e-3)
    assert Packer(plain).pack_lossless(on_grid(16, 64, 'q4_1')).format == INT4


@pytest.mark.skipif(shutil.which('aarch64-linux-gnu-g++') is None, reason='no cross compiler')
@pytest.mark.parametrize('processor', ['armv8-a', 'armv8.2-a+dotprod', 'armv8.6-a+i8mm'])
def test_it_compiles_for_arm(processor, tmp_path):
    options = ['-std=c++17', '-O0', '-fPIC', '-shared', '-pthread', f'-march={processor}']
    build.compile_steps('aarch64-linux-gnu-g++', build.sources(), options, tmp_path / 'arm.so')


@pytest.mark.parametrize('kind,expected', [
    ('q4_1', 'int4'), ('q8_0', 'int8'), ('bfloat16', None), ('float32', None)])
def test_auto_adds_the_tier_that_takes_no_memory(library, kind, expected):
    weights = random_weights(CONFIG, kind)
    made = make_tiers(['auto'], CONFIG, weights, cache_dir() / 'kernels')
    assert [tier.name for tier in made.tiers] == ['fp32', *([expected] if expected else [])]
    for base, other in zip(made.tiers[0].matrices, made.tiers[-1].matrices):
        assert base is other
    if kind == 'q8_0':      # named ones come as well, in their order, and none twice
        tiers, _ = build_tiers(
            Packer(library), random_weights(CONFIG, kind), CONFIG, ['fp32', 'int4'], free=True)
        assert [tier.name for tier in tiers] == TIERS


def test_memory_of_a_tier_is_known_before_it_is_made(library):
    weights = random_weights(CONFIG)
    tiers, _ = build_tiers(Packer(library), weights, CONFIG, TIERS)
    for tier, code in zip(tiers[1:], (INT8, INT4)):
        made = sum(t.numel() * t.element_size() for matrix in tier.matrices
                   for t in (matrix.data, matrix.scales))
        assert made == tier_bytes(CONFIG, code, INT8) == sum(each.nbytes for each in tier.matrices)


def test_without_a_compiler_the_engine_says_so_and_decodes(make_checkpoint, monkeypatch):
    from transformers import LlamaConfig
    monkeypatch.setattr(build, 'find_compiler', lambda: None)
    directory = make_checkpoint(LlamaConfig(
        vocab_size=300, num_hidden_layers=1, intermediate_size=64, hidden_size=64,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=299, bos_token_id=298))
    engine = Engine.load(Load(str(directory), device='cpu', tiers=['fp32', 'int4']))
    assert engine.info.tiers == ['fp32']
    assert any('g++' in note and 'int4' in note for note in engine.notes)
    seq = engine.open_sequence([1, 2, 3], 10)
    assert engine.prefill_chunk(seq)
    engine.next_token(seq)
    assert len(engine.decode_step([seq])) == 1


@pytest.fixture
def small_kernels(monkeypatch, tmp_path):
    """Have something compiled that takes no time; returns a cache directory that is not there."""
    (tmp_path / 'kernels').mkdir()
    (tmp_path / 'kernels' / 'one.cpp').write_text('extern "C" int one() { return 1; }')
    monkeypatch.setattr(build, '_KERNELS', tmp_path / 'kernels')
    return tmp_path / 'cache' / 'kernels'


def test_what_was_compiled_is_kept_and_made_anew_where_it_is_broken(small_kernels, monkeypatch):
    small_kernels.mkdir(parents=True)
    file = small_kernels / f'cpu-{build._digest(build.find_compiler())[:24]}.so'
    file.write_bytes(b'')           # as a power failure leaves it
    assert build.library(small_kernels).one() == 1
    assert list(small_kernels.iterdir()) == [file] and file.stat().st_size > 0
    monkeypatch.setattr(build, 'compile_steps', None)
    assert build.library(small_kernels).one() == 1


def test_where_nothing_can_be_kept_it_is_compiled_all_the_same(small_kernels, caplog):
    small_kernels.parent.write_text('a file where the directory should be')
    assert build.library(small_kernels).one() == 1
    assert 'at every start' in caplog.text


def test_two_engines_may_start_at_once_on_an_empty_cache(small_kernels):
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(build.library, [small_kernels] * 4))
    assert [each.one() for each in found] == [1] * 4 and len(list(small_kernels.iterdir())) == 1


@pytest.mark.parametrize('program', ['#!/bin/sh\nexit 1\n', 'no program'])
def test_a_compiler_that_does_not_work_is_named(small_kernels, monkeypatch, tmp_path, program):
    broken = tmp_path / 'broken-g++'
    broken.write_text(program)
    broken.chmod(0o755)
    monkeypatch.setenv('CXX', str(broken))
    with pytest.raises(build.NoCompiler, match='broken-g' if program[0] == '#' else 'format'):
        build.library(small_kernels)


def test_shapes_that_the_kernels_do_not_have_are_named():
    config = replace(CONFIG, head_dim=20)
    made = make_tiers(['fp32', 'int4'], config, random_weights(replace(CONFIG)), cache_dir())
    assert made.tiers == [] and 'head_dim 20' in made.notes[0]


def test_silu_and_softmax_hold_for_large_numbers(library):
    config = replace(CONFIG, n_layers=1, qk_norm=False)
    weights = random_weights(config)
    for layer in weights.layers:
        layer.gate_up.mul_(40), layer.qkv.mul_(20)
        layer.q_norm = layer.k_norm = None
    tiers, _ = build_tiers(Packer(library), weights, config, ['fp32'])
    cache = filled_cache(config, weights)
    other = copied(cache)
    logits = compiled(library, config, weights, tiers, cache).run([1], [9], 'fp32')
    expected = Decoder(config, weights, rope_table(config, 1024, CPU), other).step(
        [1], torch.tensor([9]))
    assert torch.isfinite(logits).all()
    assert F.cosine_similarity(logits, expected).item() > 1 - 1e-6


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('kind', ['q4_1', 'q8_0', 'bfloat16'])
def test_a_compiled_prefill_leaves_what_the_decoder_leaves(library, shape, kind):
    config = SHAPES[shape]
    weights = random_weights(config, kind)
    tiers, _ = build_tiers(Packer(library), weights, config, ['fp32'])
    cache = allocate(config, 2, 512, torch.float32, CPU)
    other = copied(cache)
    steps = compiled(library, config, weights, tiers, cache, threads=3)
    assert steps.can_prefill[0] == 'fp32'
    decoder = Decoder(config, weights, rope_table(config, 1024, CPU), other, 1)
    window = QueryWindow(config.n_layers, config.n_heads, config.head_dim, torch.float32, CPU)
    seq = SimpleNamespace(
        slot=1, prompt=torch.randint(0, config.vocab_size, (219,)).tolist(), n_prefilled=0,
        window=QueryWindow(config.n_layers, config.n_heads, config.head_dim, torch.float32, CPU))
    seq.n_prompt = len(seq.prompt)
    for chunk in (1, 7, 150, 40, 21):                # the last one is shorter than the window
        ids = seq.prompt[seq.n_prefilled:seq.n_prefilled + chunk]
        last = seq.n_prefilled + chunk == seq.n_prompt
        expected = decoder.prefill_chunk(1, torch.tensor(ids), window, last)
        seq.n_prefilled += CompiledPrefill(steps, config, chunk).advance(seq)
    assert seq.n_prefilled == seq.n_prompt and cache.length == other.length == [0, 219]
    for got, wanted in ((seq.logits, expected), (seq.prompt_state, decoder.tap[0]),
                        (seq.window.queries, window.queries),
                        (cache.k[:, 1, :, :219], other.k[:, 1, :, :219]),
                        (cache.v[:, 1, :, :219], other.v[:, 1, :, :219])):
        assert (got - wanted).norm() / wanted.norm() < 1e-5


def test_a_prompt_in_chunks_is_the_same_prompt(library):
    weights = random_weights(CONFIG, 'q4_1')
    tiers, _ = build_tiers(Packer(library), weights, CONFIG, ['fp32'])
    ids = torch.randint(0, CONFIG.vocab_size, (300,)).tolist()
    logits = []
    for chunks, threads in (((300,), 1), ((256, 44), 2), ((100, 100, 99, 1), 4)):
        cache = allocate(CONFIG, 1, 512, torch.float32, CPU)
        steps, done = compiled(library, CONFIG, weights, tiers, cache, threads), 0
        for chunk in chunks:
            last, _ = steps.prefill(0, ids[done:done + chunk], None, done + chunk == 300)
            done += chunk
        logits.append(last)
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits[2], logits[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('tier', ['int8', 'int4'])
def test_a_prefill_in_a_lower_tier_is_near_the_exact_one(library, tier):
    config = SHAPES['groups of 7']
    weights = random_weights(config)
    tiers, _ = build_tiers(Packer(library), weights, config, TIERS)
    exact = dense({each.name: each for each in tiers}[tier], weights)
    cache = allocate(config, 1, 512, torch.float32, CPU)
    other = copied(cache)
    ids = torch.randint(0, config.vocab_size, (203,))
    steps = compiled(library, config, weights, tiers, cache)
    assert steps.can_prefill == ['int8', 'int4']
    logits, _ = steps.prefill(0, ids.tolist(), None, True, tier)
    expected = Decoder(config, exact, rope_table(config, 1024, CPU), other).prefill_chunk(
        0, ids, None, True)
    assert (logits - expected).norm() / expected.norm() < 0.03
    keys = other.k[:, :, :, :203]
    assert (cache.k[:, :, :, :203] - keys).norm() / keys.norm() < 0.03


@pytest.mark.parametrize('kind', ['q4_1', 'q8_0'])
def test_a_prefill_in_16_bits_is_nearly_exact_on_any_processor(library, plain, kind):
    weights = random_weights(CONFIG, kind)
    tiers, _ = build_tiers(Packer(library), weights, CONFIG, ['fp32'])
    cache = allocate(CONFIG, 1, 512, torch.float32, CPU)
    ids = torch.randint(0, CONFIG.vocab_size, (203,))
    expected = Decoder(CONFIG, weights, rope_table(CONFIG, 1024, CPU), copied(cache)).prefill_chunk(
        0, ids, None, True)
    for each in (library, plain):
        steps = compiled(each, CONFIG, weights, tiers, copied(cache))
        assert steps.can_prefill == ['fp32', 'int16'] and steps.tiers == ['fp32']
        logits, _ = steps.prefill(0, ids.tolist(), None, True, 'int16')
        assert 1e-6 < (logits - expected).norm() / expected.norm() < 2e-4


def test_an_engine_reads_prompts_in_the_tier_that_is_wanted(make_checkpoint):
    from transformers import LlamaConfig
    directory = make_checkpoint(LlamaConfig(
        vocab_size=300, num_hidden_layers=1, intermediate_size=64, hidden_size=64,
        num_attention_heads=4, num_key_value_heads=2, eos_token_id=299, bos_token_id=298))
    engine = Engine.load(Load(str(directory), device='cpu', tiers=['fp32', 'int4'],
                              prefill_tier='int4'))
    assert engine.info.device.endswith(', prefill in int4') and not engine.notes
    assert 4 * engine.packed_bytes['int4'] < engine.packed_bytes['fp32']
    engine = Engine.load(Load(str(directory), device='cpu', prefill_tier='int8'))
    assert 'prefill' not in engine.info.device
    assert any('prefill_tier int8' in note for note in engine.notes)


def test_more_threads_than_cores_never_wait_for_each_other_in_vain(library):
    weights = random_weights(CONFIG, 'q4_1')
    tiers, _ = build_tiers(Packer(library), weights, CONFIG, ['fp32', 'int4'])
    cache = allocate(CONFIG, 1, 64, torch.float32, CPU)
    steps = compiled(library, CONFIG, weights, tiers, cache, threads=6)
    first = None
    for _ in range(150):
        cache.reset(0)
        steps.prefill(0, [3, 5, 8], None, True)
        logits = steps.run([0], [7], 'int4').clone()
        first = logits if first is None else first
        assert torch.equal(logits, first)
