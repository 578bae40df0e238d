# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The kernels of prefill and eviction, run by the emulator, against plain tensor code."""

from functools import partial
import shutil
from typing import Any

from engine.cuda_emulation import EmulatedKernels
import pytest
import torch

from timebill_ros.engine.cuda.prompt_kernels import PromptKernels, source
from timebill_ros.engine.cuda.quantize import dequantize, quantize
from timebill_ros.engine.rope import rotate, sign_sin
from timebill_ros.engine.snapkv import select

pytestmark = pytest.mark.skipif(
    shutil.which('g++') is None, reason='the emulator needs a C++ compiler')
BF16 = torch.bfloat16


@pytest.fixture(scope='module', params=[64, 128])
def head_dim(request: Any) -> int:
    return request.param


@pytest.fixture(scope='module')
def kernels(head_dim: int, tmp_path_factory: pytest.TempPathFactory) -> PromptKernels:
    emulated = EmulatedKernels(partial(source, head_dim), tmp_path_factory.mktemp('prompt'))
    return PromptKernels(emulated, head_dim)


@pytest.mark.parametrize('normed', [False, True])
def test_heads_are_turned_and_stored(kernels: PromptKernels, head_dim: int, normed: bool) -> None:
    torch.manual_seed(1)
    count, heads, kv_heads, start, capacity = 5, 6, 2, 3, 20
    qkv = torch.randn(count, (heads + 2 * kv_heads) * head_dim).to(BF16)
    norms = [(1 + 0.1 * torch.randn(head_dim)).to(BF16) if normed else None for _ in range(2)]
    angles = torch.rand(capacity, head_dim // 2).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    queries = torch.zeros(8, heads, head_dim, dtype=BF16)
    cache = torch.zeros(2, 3, kv_heads, capacity, head_dim, dtype=BF16)
    keys, values = cache[0, 1], cache[1, 1]
    kernels.turn(qkv, queries, keys, values, start, cos, sin, norms[0], norms[1], 1e-6)
    expected = qkv.view(count, -1, head_dim).float()
    turned = expected[:, :heads + kv_heads]
    if normed:
        parts = (turned[:, :heads], norms[0]), (turned[:, heads:], norms[1])
        turned = torch.cat([
            torch.nn.functional.rms_norm(part, (head_dim,), weight.float(), 1e-6)
            for part, weight in parts], 1).to(BF16).float()
    places = slice(start, start + count)
    turned = rotate(turned, cos[places, None], sign_sin(sin)[places, None])
    torch.testing.assert_close(queries[:count].float(), turned[:, :heads], rtol=0.01, atol=0.01)
    torch.testing.assert_close(
        keys[:, places].float(), turned[:, heads:].transpose(0, 1), rtol=0.01, atol=0.01)
    assert torch.equal(
        values[:, places].float(), expected[:, heads + kv_heads:].transpose(0, 1))
    assert not queries[count:].any() and not cache[:, [0, 2]].any()
    assert not keys[:, start + count:].any() and not keys[:, :start].any()


def test_gate_times_up(kernels: PromptKernels) -> None:
    gate_up = torch.randn(3, 2 * 328).to(BF16)
    gate, up = gate_up.float().chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * up
    torch.testing.assert_close(kernels.gate(gate_up).float(), expected, rtol=0.01, atol=1e-3)


@pytest.mark.parametrize('n_scored,n_best', [(1, 1), (700, 1), (700, 333), (700, 700), (1500, 90)])
@pytest.mark.parametrize('levels', [0, 3])
def test_the_best_entries_are_those_of_plain_code(
        kernels: PromptKernels, n_scored: int, n_best: int, levels: int) -> None:
    torch.manual_seed(n_scored)
    scores = torch.rand(2, 2, n_scored) ** 8
    if levels:                                  # many equals
        scores = (scores * levels).round() / levels
    expected = select(scores, n_best + 32)[..., :n_best]
    best, kept_scores = kernels.select(scores, n_best)
    assert torch.equal(best.long(), expected)
    assert torch.equal(kept_scores, scores.gather(-1, expected))


@pytest.mark.parametrize('n_scored,n_best,response', [(500, 250, 0), (500, 3, 40), (90, 90, 5)])
def test_kept_entries_move_to_the_front(
        kernels: PromptKernels, head_dim: int, n_scored: int, n_best: int, response: int) -> None:
    torch.manual_seed(n_best)
    layers, slots, heads, capacity = 2, 2, 2, 600
    cache = torch.randn(2, layers, slots, heads, capacity, head_dim).to(BF16)
    before, length = cache.clone(), n_scored + 32 + response
    best = torch.rand(layers, heads, n_scored).argsort(-1)[..., :n_best].sort(-1).values.int()
    kernels.compact(cache[0, :, 1], cache[1, :, 1], best, n_scored, length)
    tail = torch.arange(n_scored, length).expand(layers, heads, -1)
    entries = torch.cat((best.long(), tail), -1)[..., None].expand(-1, -1, -1, head_dim)
    for side in range(2):
        kept = before[side, :, 1].gather(2, entries)
        assert torch.equal(cache[side, :, 1, :, :entries.shape[2]], kept)
        assert torch.equal(cache[side, :, 0], before[side, :, 0])


@pytest.mark.parametrize('bits,group', [(8, 128), (4, 128), (4, 32)])
def test_a_quantised_matrix_is_made_dense(
        kernels: PromptKernels, bits: int, group: int) -> None:
    torch.manual_seed(2)
    matrix = quantize(torch.randn(44, 352).to(BF16), bits, group)
    out = torch.empty((24, 352), dtype=BF16)
    kernels.dequantize(matrix, 20, out)
    assert torch.equal(out, dequantize(matrix)[20:])
