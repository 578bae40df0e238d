# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The CUDA kernels against float32 references.

They run on the GPU where there is one, otherwise on the emulator, which executes the same source.
"""

from dataclasses import replace
from functools import partial
import shutil

from engine.cuda_emulation import EmulatedKernels
import pytest
import torch

from timebill_ros.engine.cuda import launch
from timebill_ros.engine.cuda.layout import make_layout, part_columns, Product
from timebill_ros.engine.cuda.program import attention_phase, phase_table, product_phases
from timebill_ros.engine.cuda.quantize import dequantize, matrix_bytes, quantize
from timebill_ros.engine.cuda.state import allocate_state
from timebill_ros.engine.cuda.variants import emulator_source, Step

BLOCKS = 3
PRODUCTS = [Step(bits, bits, batch, 64, warps=4, stages=4, group=group)
            for bits, group in ((16, 128), (8, 128), (4, 128), (4, 32)) for batch in (1, 8)]
ATTENTIONS = [Step(16, 16, 4, width, warps=2, stages=3) for width in (64, 128)]

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and shutil.which('g++') is None,
    reason='needs a GPU, or a C++ compiler for the emulator')


@pytest.fixture(scope='module')
def device():
    return torch.device('cuda' if torch.cuda.is_available() else 'cpu')


@pytest.fixture(scope='module')
def kernels(device, tmp_path_factory):
    directory = tmp_path_factory.mktemp('kernels')
    if device.type == 'cpu':
        return EmulatedKernels(partial(emulator_source, PRODUCTS + ATTENTIONS), directory)
    from timebill_ros.engine.cuda.driver import Kernels
    from timebill_ros.engine.cuda.nvrtc import compile_cubins
    from timebill_ros.engine.cuda.variants import sources
    major, minor = torch.cuda.get_device_capability(device)
    cubins = compile_cubins(sources(PRODUCTS + ATTENTIONS), f'sm_{major}{minor}', directory)
    return Kernels(cubins, device)


def random(*shape, device, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(device, torch.bfloat16)


def close(actual, expected, tolerance):
    error = (actual.float() - expected.float()).norm() / expected.float().norm()
    assert error < tolerance, f'relative error {error:.2e}'


def rms_norm(x, weight, eps=1e-6):
    x = x.float()
    return weight.float() * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))


def run_product(kernels, device, kernel, phases, shape, state=None, **options):
    """Launch phases of products alone, on a cache that nobody uses."""
    state = state or allocate_state(8, shape.rows, 1, 64, BLOCKS, BLOCKS, device)
    cache = torch.zeros((1, 1, 1, kernel.head_dim), device=device, dtype=torch.bfloat16)
    table = torch.zeros((1, kernel.head_dim), device=device)
    launch.step(kernels, kernel, make_layout(kernel, [shape], BLOCKS), BLOCKS,
                phase_table(phases, device), state, table, table, cache, 1, 1e-6, 0.125, **options)


@pytest.mark.parametrize('epilogue,parts', [
    ('store', 1), ('add_residual', 1), ('add_residual', 3), ('swiglu', 1)])
@pytest.mark.parametrize('k', [416, 320])      # 320: int4's last chunk has one group of 128 only
@pytest.mark.parametrize('kernel', PRODUCTS, ids=lambda k: k.name)
def test_product_matches_its_reference(kernels, device, kernel, epilogue, parts, k):
    rows = 44
    weight = quantize(random(rows * (2 if epilogue == 'swiglu' else 1), k, device=device,
                             scale=0.1), kernel.bits, kernel.group)
    dense = dequantize(weight).float()
    x = random(kernel.batch, k, device=device)
    norm = None if epilogue == 'add_residual' else random(k, device=device, seed=1)
    bias = random(weight.n, device=device, seed=2)
    before = random(kernel.batch, rows, device=device, seed=3)
    out = before.clone() if epilogue == 'add_residual' else torch.full_like(before, torch.nan)
    tap = torch.full_like(out, torch.nan)
    phases = product_phases(weight, epilogue, BLOCKS, x, out, bias, norm, tap, parts)
    shape = Product(kernel.bits, rows, epilogue == 'swiglu', part_columns(k, kernel.bits, parts),
                    parts > 1, kernel.group)
    run_product(kernels, device, kernel, phases, shape)

    inputs = x.float() if norm is None else rms_norm(x, norm)
    expected = inputs @ dense.T + bias.float()
    if epilogue == 'swiglu':
        gate, up = expected.chunk(2, -1)
        expected = torch.nn.functional.silu(gate) * up
    if epilogue == 'add_residual':
        expected += before.float()
    assert torch.equal(tap, out)
    close(out, expected, 1e-2)


@pytest.mark.parametrize('bits,group', [(8, 128), (4, 128), (4, 32)])
def test_vectors_beside_integer_weights_are_finer_than_bf16(kernels, device, bits, group):
    kernel = next(p for p in PRODUCTS if (p.bits, p.group) == (bits, group))
    k, rows = 256, 24
    weight = quantize(random(rows, k, device=device), bits, group)
    x, norm = random(1, k, device=device), torch.ones(k, device=device, dtype=torch.bfloat16)
    x[:, ::64] *= 100                              # outliers, in every group of columns
    state = allocate_state(8, rows, 1, 64, BLOCKS, BLOCKS, device)
    state.slot_of_row[0] = 0
    phases = product_phases(weight, 'logits', BLOCKS, x, None, norm=norm)
    run_product(kernels, device, kernel, phases,
                Product(bits, rows, False, k, group=group), state)
    exact = rms_norm(x, norm).double() @ dequantize_exactly(weight).T
    close(state.logits[:1], exact, 3e-3)           # the rounding of the logits themselves


def dequantize_exactly(matrix):
    """Return float64 values without the rounding of products to bf16."""
    if matrix.bits == 8:
        return matrix.data.double() * matrix.scales.double()[:, None]
    ones = torch.ones_like(matrix.scales)
    if matrix.group == 32:
        scales, offsets = matrix.scales.double().repeat_interleave(32, dim=1).unbind(2)
        unit = dequantize(replace(matrix, scales=ones)).double() - 1
        return unit * scales[:, :matrix.k] + offsets[:, :matrix.k]
    scales = matrix.scales.transpose(1, 2).reshape(-1, matrix.scales.shape[1])[:matrix.n].double()
    unit = dequantize(replace(matrix, scales=ones)).double()
    return unit * scales.repeat_interleave(128, dim=1)[:, :matrix.k]


def test_phases_wait_for_each_other(kernels, device):
    kernel, width = PRODUCTS[0], 192
    first, second = (quantize(random(width, width, device=device, seed=i), 16) for i in (0, 1))
    x = random(1, width, device=device)
    middle, out = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    phases = (product_phases(first, 'store', BLOCKS, x, middle)
              + product_phases(second, 'store', BLOCKS, middle, out))
    run_product(kernels, device, kernel, phases, Product(16, width, False, width))
    close(middle, x.float() @ first.data.float().T, 1e-2)
    close(out, middle.float() @ second.data.float().T, 1e-2)


@pytest.mark.parametrize('kernel', PRODUCTS, ids=lambda k: k.name)
def test_head_penalises_seen_tokens_and_finds_the_best(kernels, device, kernel):
    k, rows = 128, 52
    weight = quantize(random(rows, k, device=device), kernel.bits, kernel.group)
    x, norm = random(kernel.batch, k, device=device), random(k, device=device, seed=1)
    state = allocate_state(8, rows, 1, 64, BLOCKS, BLOCKS, device)
    state.slot_of_row[:kernel.batch] = torch.arange(kernel.batch, device=device).flip(0)
    state.seen[:, ::2] = 1
    state.penalty[:] = 1.5
    phases = product_phases(weight, 'logits', BLOCKS, x, None, norm=norm)
    run_product(kernels, device, kernel, phases,
                Product(kernel.bits, rows, False, k, group=kernel.group), state)
    launch.sample(kernels, kernel.batch, BLOCKS, state)

    logits = rms_norm(x, norm) @ dequantize(weight).float().T
    penalised = torch.where(logits < 0, logits * 1.5, logits / 1.5)
    expected = torch.where(torch.arange(rows, device=device) % 2 == 0, penalised, logits)
    close(state.logits[:kernel.batch], expected, 1e-2)
    best = state.logits[:kernel.batch].argmax(-1).int()
    assert torch.equal(state.chosen[:kernel.batch, 0], best)
    slots = state.slot_of_row[:kernel.batch].long()
    assert torch.equal(state.tokens[slots], best)
    assert not (state.seen[slots][:, 1::2]).any()
    assert state.lengths[slots].tolist() == [1] * kernel.batch


def half_turned(x):
    half = x.shape[-1] // 2
    return torch.cat([-x[:, half:], x[:, :half]], 1)


@pytest.mark.parametrize('kernel', ATTENTIONS, ids=lambda k: k.name)
@pytest.mark.parametrize('group', [1, 3, 4, 7, 8])
@pytest.mark.parametrize('normed', [False, True])
def test_attention_matches_softmax_over_the_cache(kernels, device, kernel, group, normed):
    kv_heads, blocks, capacity, slots, width = 2, 24, 160, 3, kernel.head_dim
    batch = kernel.batch
    heads = kv_heads * group
    lengths = [150, 0, 33]
    state = allocate_state(slots, 8, kv_heads, width, blocks, blocks, device)
    state.lengths[:] = torch.tensor(lengths, device=device)
    state.positions[:] = torch.tensor([170, 3, 33], device=device)
    state.slot_of_row[:3] = torch.tensor([2, 0, -1], device=device)
    keys = random(slots, kv_heads, capacity, width, device=device)
    values = random(slots, kv_heads, capacity, width, device=device, seed=1)
    for slot, length in enumerate(lengths):
        keys[slot, :, length:] = torch.nan
        values[slot, :, length:] = torch.nan
    frequencies = 0.7 ** torch.arange(width // 2, device=device)
    angles = torch.arange(200, device=device)[:, None] * frequencies
    cos, sin = torch.cat([angles.cos()] * 2, 1), torch.cat([angles.sin()] * 2, 1)
    qkv = random(batch, (heads + 2 * kv_heads) * width, device=device, seed=2)
    q_norm = random(width, device=device, seed=3) if normed else None
    k_norm = random(width, device=device, seed=4) if normed else None
    out = torch.full((batch, heads * width), torch.nan, device=device, dtype=torch.bfloat16)
    before = keys.clone()
    phases = phase_table([attention_phase(keys, values, qkv, out, q_norm, k_norm)], device)
    launch.step(kernels, kernel, make_layout(kernel, [], blocks), blocks, phases, state, cos, sin,
                keys, heads, 1e-6, 0.125)

    assert out[2:].eq(0).all()
    for row, slot in ((0, 2), (1, 0)):
        length, position = lengths[slot], int(state.positions[slot])
        q, k, v = qkv[row].float().view(-1, width).split([heads, kv_heads, kv_heads])
        if normed:
            q, k = rms_norm(q, q_norm), rms_norm(k, k_norm)
        q, k = (x * cos[position] + half_turned(x) * sin[position] for x in (q, k))
        close(keys[slot, :, length], k, 1e-2)
        assert torch.equal(values[slot, :, length].float(), v)
        assert torch.equal(keys[slot, :, :length], before[slot, :, :length])
        assert keys[slot, :, length + 1:].isnan().all()
        all_k = torch.cat([keys[slot, :, :length].float(), k[:, None]], 1)
        all_v = torch.cat([values[slot, :, :length].float(), v[:, None]], 1)
        all_k, all_v = all_k.repeat_interleave(group, 0), all_v.repeat_interleave(group, 0)
        weights = torch.softmax(torch.einsum('hd,hnd->hn', q, all_k) * 0.125, -1)
        close(out[row].view(heads, width), torch.einsum('hn,hnd->hd', weights, all_v), 1e-2)


def reference_distribution(logits, temperature, top_k, top_p):
    """Return the probabilities that transformers' warpers leave."""
    scores = logits.double() / temperature
    if top_k:
        scores[scores < scores.topk(top_k).values[-1]] = -torch.inf
    ordered, order = scores.sort()
    removed = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
    removed[-1] = False
    scores[order[removed]] = -torch.inf
    return scores.softmax(-1)


@pytest.mark.parametrize('temperature,top_k,top_p', [
    (1.0, 0, 1.0), (0.7, 20, 0.8), (1.5, 5, 1.0), (0.6, 0, 0.5), (1.0, 1, 1.0), (1.0, 0, 0.0)])
def test_sampling_draws_from_the_warped_distribution(kernels, device, temperature, top_k, top_p):
    vocabulary, draws = 300, 400 if device.type == 'cuda' else 48
    state = allocate_state(1, vocabulary, 1, 64, 1, 1, device)
    logits = random(vocabulary, device=device, scale=2.0).float()
    state.logits[0] = logits
    state.best_value[0], state.best_index[0] = logits.max(), int(logits.argmax())
    state.slot_of_row[0] = 0
    state.temperature[0], state.top_k[0], state.top_p[0] = temperature, top_k, top_p
    expected = reference_distribution(logits, temperature, top_k, top_p)
    counts = torch.zeros(vocabulary, dtype=torch.float64, device=device)
    for seed in range(draws):
        state.seed[0] = seed
        state.positions[0] = 7
        launch.sample(kernels, 1, 1, state)
        counts[int(state.chosen[0, 1])] += 1
    assert not counts[expected == 0].any(), 'drew a token that top-k or top-p had removed'
    likely = expected.argsort(descending=True)[:3]
    for token in likely.tolist():
        p = float(expected[token])
        spread = (p * (1 - p) / draws) ** 0.5
        assert abs(float(counts[token]) / draws - p) < 4.5 * spread + 1e-9


def test_the_same_seed_and_position_draw_the_same_token(kernels, device):
    state = allocate_state(2, 256, 1, 64, 1, 1, device)
    state.logits[:2] = random(256, device=device).float()
    state.best_value[:2] = state.logits[0].max()
    state.slot_of_row[:2] = torch.tensor([1, 0], device=device)
    state.temperature[:] = 1.0
    drawn = set()
    for position in range(6):
        state.positions[:] = position
        launch.sample(kernels, 2, 1, state)
        first, second = state.chosen[:2, position % 2].tolist()
        assert first == second
        drawn.add(first)
    assert len(drawn) > 2


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_where_no_logit_is_a_number_nothing_is_chosen(kernels, device, temperature):
    state = allocate_state(2, 256, 1, 64, 1, 1, device)
    state.logits[0], state.logits[1] = torch.nan, random(256, device=device).float()
    state.best_value[:2] = torch.tensor([-torch.inf, state.logits[1].max()], device=device)
    state.best_index[:2] = torch.tensor([0x7FFFFFFF, int(state.logits[1].argmax())], device=device)
    state.slot_of_row[:2] = torch.tensor([0, 1], device=device)
    state.temperature[:] = temperature
    launch.sample(kernels, 2, 1, state)
    assert int(state.chosen[0, 0]) == -1 and 0 <= int(state.chosen[1, 0]) < 256
    assert state.lengths[:2].tolist() == [0, 1]


@pytest.mark.parametrize('bits,group,tolerance', [(8, 128, 0.01), (4, 128, 0.1), (4, 32, 0.075)])
def test_quantised_weights_stay_near(device, bits, group, tolerance):
    weight = random(50, 416, device=device)
    matrix = quantize(weight, bits, group)
    close(dequantize(matrix), weight, tolerance)
    assert matrix.nbytes == matrix_bytes(50, 416, bits, group)


def test_a_checkpoint_of_four_bits_keeps_its_numbers(device):
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 16, (40, 13, 32), generator=generator)
    codes[:, :, 0], codes[:, :, 1] = 0, 15                     # as GGUF's Q4_1 makes them
    scale = torch.rand((40, 13, 1), generator=generator) * 0.02 + 0.001
    weight = (codes * scale - scale * 7.3).view(40, -1).to(device, torch.bfloat16)
    close(dequantize(quantize(weight, 4, 32)), weight, 0.006)
