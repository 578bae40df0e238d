# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The kernels of a whole decode step against the plain decoder, on a small random model."""

from functools import partial
import shutil

from engine.cuda_emulation import EmulatedKernels
import pytest
import torch

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cuda.decode_step import DecodeStep, kernels_needed
from timebill_ros.engine.cuda.quantize import dequantize
from timebill_ros.engine.cuda.tiers import build_tier, int4_group, tier_bytes, unsupported
from timebill_ros.engine.cuda.tuning import Limits, Tuning
from timebill_ros.engine.cuda.variants import emulator_source
from timebill_ros.engine.decoder import Decoder
from timebill_ros.engine.kv_cache import allocate
from timebill_ros.engine.rope import rope_table
from timebill_ros.engine.weights import LayerWeights, Weights

CONFIG = ModelConfig(
    family='qwen3', n_layers=2, d_model=192, n_heads=6, n_kv_heads=2, head_dim=64, d_ff=160,
    vocab_size=100, norm_eps=1e-6, max_positions=256, eos_ids=(0,),
    rope={'rope_type': 'default', 'rope_theta': 10000.0}, attention_bias=True, output_bias=True,
    mlp_bias=True, qk_norm=True, tie_embeddings=False)
TUNING = Tuning({16: 4, 8: 4, 4: 4}, 3)
CPU = torch.device('cpu')
WIDTHS = (1, 4, 8)
LIMITS = Limits(sm_count=3)

pytestmark = pytest.mark.skipif(
    shutil.which('g++') is None, reason='the emulator needs a C++ compiler')


def random_weights():
    torch.manual_seed(3)
    c = CONFIG

    def normal(*shape, scale=1.0, offset=0.0):
        return (torch.randn(shape) * scale + offset).to(torch.bfloat16)

    heads, q = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim, c.n_heads * c.head_dim
    layers = [LayerWeights(
        input_norm=normal(c.d_model, scale=0.1, offset=1), qkv=normal(heads, c.d_model, scale=0.07),
        o=normal(c.d_model, q, scale=0.05), post_norm=normal(c.d_model, scale=0.1, offset=1),
        gate_up=normal(2 * c.d_ff, c.d_model, scale=0.07),
        down=normal(c.d_model, c.d_ff, scale=0.08), qkv_bias=normal(heads, scale=0.1),
        o_bias=normal(c.d_model, scale=0.1), q_norm=normal(c.head_dim, scale=0.1, offset=1),
        k_norm=normal(c.head_dim, scale=0.1, offset=1), gate_up_bias=normal(2 * c.d_ff, scale=0.1),
        down_bias=normal(c.d_model, scale=0.1)) for _ in range(c.n_layers)]
    return Weights(normal(c.vocab_size, c.d_model), layers, normal(c.d_model, scale=0.1, offset=1),
                   normal(c.vocab_size, c.d_model, scale=0.07))


def dense(tier, weights):
    """Return plain weights with the values that a tier's matrices stand for."""
    layers = []
    for quantised, layer in zip(tier.layers, weights.layers):
        fields = dict(vars(layer))
        for name in ('qkv', 'o', 'gate_up', 'down'):
            fields[name] = dequantize(getattr(quantised, name))
        layers.append(LayerWeights(**fields))
    return Weights(weights.embed, layers, weights.final_norm, dequantize(tier.head))


@pytest.fixture(scope='module')
def weights():
    return random_weights()


@pytest.fixture(scope='module')
def tiers(weights):
    return [build_tier(name, weights, int4_group(CONFIG)) for name in ('bf16', 'int8', 'int4')]


@pytest.fixture(scope='module')
def kernels(tiers, tmp_path_factory):
    variants = kernels_needed(CONFIG, [t.name for t in tiers], TUNING, LIMITS, WIDTHS)
    return EmulatedKernels(partial(emulator_source, variants), tmp_path_factory.mktemp('step'))


def filled_cache(weights):
    """Return a cache with three sequences, one of them evicted to every other entry."""
    cache = allocate(CONFIG, 3, 128, torch.bfloat16, CPU)
    decoder = Decoder(CONFIG, weights, rope_table(CONFIG, 256, CPU), cache)
    for slot, length in enumerate((40, 7, 90)):
        decoder.prefill_chunk(slot, torch.randint(0, CONFIG.vocab_size, (length,)), None, True)
    cache.keep(2, torch.arange(0, 90, 2).expand(CONFIG.n_layers, CONFIG.n_kv_heads, -1))
    return cache


def twin_step(kernels, weights, tier, width, slots, steps):
    """Run the kernels and the plain decoder on equal caches and tokens; yield both logits."""
    torch.manual_seed(5)
    cache = filled_cache(weights)
    other = allocate(CONFIG, 3, 128, torch.bfloat16, CPU)
    other.k.copy_(cache.k), other.v.copy_(cache.v)
    other.length, other.position = list(cache.length), list(cache.position)
    decoder = Decoder(CONFIG, dense(tier, weights), rope_table(CONFIG, 256, CPU), other)
    step = DecodeStep(CONFIG, weights.embed, rope_table(CONFIG, 256, CPU), cache, kernels, TUNING,
                      LIMITS, tap_layer=1)
    state = step.state
    state.lengths[:] = torch.tensor(cache.length)
    state.positions[:] = torch.tensor(cache.position)
    state.tokens[:] = torch.tensor([5, 6, 7])
    state.slot_of_row[:len(slots)] = torch.tensor(slots)
    for _ in range(steps):
        ids = state.tokens[slots].long()
        step.launch(tier, width)
        yield step, state.logits[:len(slots)], decoder.step(slots, ids).float()


@pytest.mark.parametrize('index,width,slots', [
    (0, 1, [2]), (0, 4, [1, 2, 0]), (1, 1, [0]), (1, 4, [2, 0]), (1, 8, [0, 2]),
    (2, 1, [2]), (2, 8, [0, 1, 2])])
def test_a_step_gives_the_plain_decoders_logits(kernels, weights, tiers, index, width, slots):
    for step, actual, expected in twin_step(kernels, weights, tiers[index], width, slots, 2):
        error = (actual - expected).norm() / expected.norm()
        assert error < 0.03, f'relative error {error:.4f}'
        hidden = step.tap[:len(slots)].float()
        normed = torch.nn.functional.rms_norm(
            hidden, hidden.shape[1:], weights.final_norm.float(), 1e-6)
        again = normed @ dequantize(tiers[index].head).float().T
        assert (again - actual).norm() / actual.norm() < 0.02


def test_memory_of_a_tier_is_known_before_it_is_built(tiers):
    assert [tier.nbytes for tier in tiers] == [tier_bytes(t.name, CONFIG) for t in tiers]
    assert unsupported(CONFIG, 'int4') is None
