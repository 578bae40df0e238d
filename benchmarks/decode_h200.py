# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Checks and times the CUDA decode step of a Qwen2.5-7B-shaped model with random weights.

    python3 benchmarks/decode_h200.py --out tables [--tune] [--tail 10000] [--shape smollm2]

Times do not depend on the weights' values. The floor of a step is the bytes that it must read
(all matrices but the input embedding, and the cache) over the read bandwidth measured in this run.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
import json
from pathlib import Path
import statistics
import time
from typing import Any, Dict, Iterable, List, Sequence

import torch
from torch import Tensor

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cuda.decode_step import DecodeStep, kernels_needed, product_shape
from timebill_ros.engine.cuda.driver import device_limits, Kernels
from timebill_ros.engine.cuda.nvrtc import compile_cubin
from timebill_ros.engine.cuda.quantize import dequantize
from timebill_ros.engine.cuda.runner import StepRunner
from timebill_ros.engine.cuda.tiers import build_tier, Tier
from timebill_ros.engine.cuda.tuning import Cut, DEFAULT, Limits, PRODUCTS, Tuning
from timebill_ros.engine.cuda.variants import source
from timebill_ros.engine.decoder import Decoder
from timebill_ros.engine.errors import EngineError
from timebill_ros.engine.kv_cache import allocate, KVCache
from timebill_ros.engine.rope import RopeTable
from timebill_ros.engine.weights import LayerWeights, Weights
from timebill_ros.query import Sampling

SHAPES: Dict[str, Dict[str, Any]] = {
    'qwen2.5-7b': {
        'family': 'qwen2', 'n_layers': 28, 'd_model': 3584, 'n_heads': 28, 'n_kv_heads': 4,
        'head_dim': 128, 'd_ff': 18944, 'vocab_size': 152064, 'attention_bias': True,
        'tie_embeddings': False},
    'smollm2-135m': {
        'family': 'llama', 'n_layers': 30, 'd_model': 576, 'n_heads': 9, 'n_kv_heads': 3,
        'head_dim': 64, 'd_ff': 1536, 'vocab_size': 49152, 'attention_bias': False,
        'tie_embeddings': True}}
CANDIDATES = (
    Cut(8, 8), Cut(8, 12), Cut(8, 16), Cut(8, 20), Cut(16, 4), Cut(16, 6), Cut(16, 8), Cut(16, 10))


def shape_config(name: str) -> ModelConfig:
    return ModelConfig(
        norm_eps=1e-6, max_positions=40960, eos_ids=(0,), output_bias=False, mlp_bias=False,
        qk_norm=False, rope={'rope_type': 'default', 'rope_theta': 1e6}, **SHAPES[name])


def random_weights(c: ModelConfig, device: torch.device) -> Weights:
    generator = torch.Generator(device).manual_seed(1)

    def normal(*shape: int, scale: float) -> Tensor:
        return torch.randn(shape, generator=generator, device=device,
                           dtype=torch.bfloat16).mul_(scale)

    heads, q = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim, c.n_heads * c.head_dim
    layers = [LayerWeights(
        input_norm=1 + normal(c.d_model, scale=0.1), post_norm=1 + normal(c.d_model, scale=0.1),
        qkv=normal(heads, c.d_model, scale=c.d_model ** -0.5),
        o=normal(c.d_model, q, scale=q ** -0.5),
        gate_up=normal(2 * c.d_ff, c.d_model, scale=c.d_model ** -0.5),
        down=normal(c.d_model, c.d_ff, scale=c.d_ff ** -0.5),
        qkv_bias=normal(heads, scale=0.1) if c.attention_bias else None) for _ in range(c.n_layers)]
    embed = normal(c.vocab_size, c.d_model, scale=1.0)
    head = normal(c.vocab_size, c.d_model, scale=c.d_model ** -0.5)
    return Weights(embed, layers, torch.ones(c.d_model, device=device, dtype=torch.bfloat16), head)


def rope(c: ModelConfig, positions: int, device: torch.device) -> RopeTable:
    steps = torch.arange(0, c.head_dim, 2, device=device) / c.head_dim
    angles = torch.arange(positions, device=device)[:, None] * c.rope['rope_theta'] ** -steps
    angles = torch.cat([angles, angles], 1)
    return RopeTable(angles.cos(), angles.sin())


def median_ms(action: Any, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        action()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in times)


def measure_ceilings(device: torch.device) -> Dict[str, float]:
    """Bandwidths in bytes per second: copy (read + write), and the best of several ways to read."""
    data = torch.randint(-2**31, 2**31 - 1, (2 ** 31,), dtype=torch.int32, device=device)
    half = data.numel() // 2
    copy = median_ms(lambda: data[:half].copy_(data[half:]), 10)
    floats = data.view(torch.bfloat16).view(-1, 8192)
    vector = torch.randn(8192, device=device, dtype=torch.bfloat16)
    reads = {
        'max': median_ms(lambda: data.max(), 10),
        'cublas_matvec': median_ms(lambda: floats @ vector, 10)}
    return {'copy': half * 8 / copy * 1e3, **{
        f'read_{name}': data.numel() * 4 / ms * 1e3 for name, ms in reads.items()}}


class Bench:
    """One model, its tiers and its cache; runners with any tuning."""

    def __init__(self, shape: str, capacity: int, slots: int, cubins: Path, tuning: bool) -> None:
        self.device = torch.device('cuda')
        self.config = shape_config(shape)
        self.weights = random_weights(self.config, self.device)
        self.tiers = [build_tier(name, self.weights) for name in ('bf16', 'int8', 'int4')]
        self.rope = rope(self.config, 40960, self.device)
        self.cache: KVCache = allocate(self.config, slots, capacity, torch.bfloat16, self.device)
        self.cache.k.normal_()
        self.cache.v.normal_()
        self.cubins, self.bandwidth, self.limits = cubins, 0.0, device_limits(self.device)
        needed = kernels_needed(self.config, self.tiers, DEFAULT, self.limits)
        if tuning:
            needed |= candidate_kernels(self.config, self.tiers, self.limits)
        self.kernels = Loaded(needed, cubins, self.device)

    def runner(self, tuning: Tuning, **options: Any) -> StepRunner:
        step = DecodeStep(self.config, self.weights.embed, self.rope, self.cache,
                          self.kernels, tuning, self.limits, **options)
        self.step = step
        return StepRunner(step, self.tiers, self.cache)

    def place(self, runner: StepRunner, lengths: Sequence[int],
              sampling: Sampling = Sampling()) -> List[int]:
        for slot, length in enumerate(lengths):
            self.cache.length[slot] = self.cache.position[slot] = length
            runner.start(slot, 11 + slot, sampling, [])
        return list(range(len(lengths)))

    def step_ms(self, runner: StepRunner, tier: str, lengths: Sequence[int],
                repeats: int = 30) -> float:
        """Median GPU time of a step whose cached length stays the same."""
        slots = self.place(runner, lengths)
        state = self.step.state
        runner.step(tier, slots)

        times = []
        for _ in range(repeats):
            for slot, length in enumerate(lengths):
                self.cache.length[slot] = self.cache.position[slot] = length
            state.lengths[:len(lengths)] = lengths[0]
            state.positions[:len(lengths)] = lengths[0]
            # While the first step runs, the second is queued: its time holds no launch latency.
            runner.enqueue(tier, slots)
            times.append(median_ms(lambda: runner.enqueue(tier, slots), 1))
        return statistics.median(times)

    def floor_ms(self, tier: str, lengths: Sequence[int]) -> float:
        weights = next(t for t in self.tiers if t.name == tier).nbytes
        return (weights + self.config.kv_values_per_token * 2 * sum(lengths)) / self.bandwidth * 1e3


class Loaded:
    """Kernels compiled in parallel, in modules of a few each."""

    def __init__(self, needed: Iterable[Any], cubins: Path, device: torch.device,
                 overlap: bool = True) -> None:
        ordered = sorted(needed, key=lambda kernel: kernel.name)
        groups = [ordered[i::16] for i in range(16) if ordered[i::16]]
        major, minor = torch.cuda.get_device_capability(device)
        self._module: Dict[str, Kernels] = {}
        for group, cubin in zip(groups, compile_all(groups, f'sm_{major}{minor}', cubins)):
            module = Kernels(cubin, device, overlap)
            for name in [kernel.name for kernel in group] + ['embed_token', 'sample_token']:
                self._module[name] = module

    def launch(self, name: str, *arguments: Any) -> None:
        self._module[name].launch(name, *arguments)

    def mode(self, overlap: bool, shared_floor_bytes: int) -> None:
        for module in self._module.values():
            module.overlap, module.shared_floor_bytes = overlap, shared_floor_bytes

    def resources(self, name: str) -> List[int]:
        return self._module[name].resources(name)


def compile_all(groups: List[List[Any]], architecture: str, cubins: Path) -> List[bytes]:
    with ProcessPoolExecutor(16) as pool:
        jobs = [pool.submit(compile_cubin, source(group), architecture, cubins) for group in groups]
        return [job.result() for job in jobs]


def candidates(product: str) -> List[Cut]:
    cuts = list(CANDIDATES)
    if product in ('o', 'down'):
        cuts += [replace(cut, stream=True) for cut in cuts if cut.stages < 16]
    return cuts


def candidate_kernels(config: ModelConfig, tiers: Sequence[Tier], limits: Limits) -> set:
    needed = set()
    for tier in tiers:
        for product in PRODUCTS:
            for cut in candidates(product):
                tuning = Tuning().with_cut(product, tier.bits_of(product), cut)
                needed.add(tuning.matvec(product, tier.bits_of(product), 1,
                                         *product_shape(config, product), limits))
    for warps in (4, 8):
        for stages in (2, 3, 4):
            needed.add(Tuning({}, warps, stages).attention(config.head_dim))
    return needed


def tune(bench: Bench, tuning: Tuning, length: int) -> Tuning:
    """Coordinate descent over the cuts, in the whole step, batch 1."""
    for tier in bench.tiers:
        best = bench.step_ms(bench.runner(tuning), tier.name, [length], 11)
        print(f'tune {tier.name}: {best:.3f} ms')
        for product in PRODUCTS:
            bits, trials = tier.bits_of(product), []
            for cut in candidates(product):
                trial = tuning.with_cut(product, bits, cut)
                try:
                    ms = bench.step_ms(bench.runner(trial), tier.name, [length], 9)
                except EngineError:              # more shared memory than there is
                    continue
                trials.append((ms, cut))
            trials.sort(key=lambda trial: trial[0])
            print(f'  {product}: ' + ', '.join(
                f'{ms:.3f} {c.warps}w{c.stages}s{c.blocks_per_sm}b{"S" * c.stream}'
                for ms, c in trials[:4] + trials[-1:]), flush=True)
            if trials[0][0] < best:
                best, tuning = trials[0][0], tuning.with_cut(product, bits, trials[0][1])
    return tuning


def explore(bench: Bench, length: int) -> None:
    """How kernels follow each other, and how deep their pipelines are, one cut for all products."""
    for tier in bench.tiers:
        rows = []
        for warps, stages in {(cut.warps, cut.stages) for cut in CANDIDATES}:
            for overlap, floor in ((False, 0), (True, 115), (True, 78)):
                for stream in (False, True):
                    cuts = {(p, b): Cut(warps, stages, 1, stream and p == 'down' and stages < 16)
                            for p in PRODUCTS for b in (16, 8, 4)}
                    tuning = Tuning(cuts)
                    bench.kernels.mode(overlap, floor * 1024)
                    try:
                        ms = bench.step_ms(bench.runner(tuning), tier.name, [length], 7)
                    except EngineError:
                        continue
                    rows.append((ms, f'{warps}w{stages}s overlap={int(overlap)} floor={floor} '
                                 f'stream={int(stream)}'))
        rows.sort()
        for ms, text in rows[:6]:
            print(f'{tier.name} {ms:.3f} {text}', flush=True)
        best: Dict[str, float] = {}
        for ms, text in rows:
            for word in text.split():
                best.setdefault(word, ms)
        print(f'{tier.name} best with: ' +
              ' '.join(f'{word}:{ms:.3f}' for word, ms in sorted(best.items())))


def timeline(bench: Bench, tuning: Tuning, tier: str, lengths: Sequence[int]) -> None:
    """Print when the kernels of one layer in the middle of a step start and end."""
    runner = bench.runner(tuning)
    slots = bench.place(runner, lengths)
    runner.step(tier, slots)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(3):
            runner.step(tier, slots)
    kernels = sorted((e.time_range.start, e.time_range.end, e.name) for e in profile.events()
                     if e.device_type == torch.autograd.DeviceType.CUDA)
    middle = len(kernels) // 2
    first = kernels[middle][0]
    print(f'{tier} {lengths}: ' + ', '.join(
        f'{name[:18]} {start - first:.1f}-{end - first:.1f}'
        for start, end, name in kernels[middle:middle + 11]), flush=True)
    print('  last: ' + ', '.join(
        f'{name[:18]} {end - start:.1f}' for start, end, name in kernels[-4:]))


def tune_attention(bench: Bench, tuning: Tuning) -> Tuning:
    results = []
    for warps, stages in ((4, 3), (4, 4), (8, 2), (8, 3)):
        for blocks, least in ((1, 1), (1, 2), (1, 4), (0.5, 2)):
            trial = replace(tuning, attention_warps=warps, attention_stages=stages,
                            attention_blocks_per_sm=blocks, attention_least_tiles=least)
            runner = bench.runner(trial)
            times = [bench.step_ms(runner, 'int8', [n], 9) for n in (512, 8192, 32768)]
            results.append((sum(times), times, trial))
    results.sort(key=lambda result: result[0])
    for _, times, trial in results[:7] + results[-1:]:
        print(f'  attention {trial.attention_warps}w{trial.attention_stages}s'
              f'{trial.attention_blocks_per_sm}b{trial.attention_least_tiles}l '
              + ' '.join(f'{ms:.3f}' for ms in times))
    return results[0][2]


def reference_logits(bench: Bench, tier: Tier, slot: int, token: int, length: int) -> Tensor:
    """Return the logits of one step in float32 from the dequantised weights and the cache."""
    c, rows = bench.config, bench.rope
    x = bench.weights.embed[token].float()
    cos, sin = rows.cos[length], rows.sin[length]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean() + c.norm_eps) * weight.float()

    def turn(x: Tensor) -> Tensor:
        half = c.head_dim // 2
        return x * cos + torch.cat([-x[:, half:], x[:, :half]], 1) * sin

    for index, layer in enumerate(tier.layers):
        small = layer.small
        qkv = dequantize(layer.qkv).float() @ norm(x, small.input_norm)
        if small.qkv_bias is not None:
            qkv = qkv + small.qkv_bias.float()
        q, k, v = qkv.view(-1, c.head_dim).split([c.n_heads, c.n_kv_heads, c.n_kv_heads])
        keys = torch.cat([bench.cache.k[index, slot, :, :length].float(), turn(k)[:, None]], 1)
        values = torch.cat([bench.cache.v[index, slot, :, :length].float(), v[:, None]], 1)
        q = turn(q).view(c.n_kv_heads, c.group, c.head_dim)
        weights = torch.softmax(q @ keys.transpose(1, 2) * c.head_dim ** -0.5, -1)
        x = x + dequantize(layer.o).float() @ (weights @ values).reshape(-1)
        gate, up = (dequantize(layer.gate_up).float() @ norm(x, small.post_norm)).chunk(2)
        x = x + dequantize(layer.down).float() @ (torch.nn.functional.silu(gate) * up)
    return dequantize(tier.head).float() @ norm(x, tier.final_norm)


def check(bench: Bench, tuning: Tuning) -> Dict[str, float]:
    """Return the relative error of the logits, per tier and batch width, worst row."""
    errors = {}
    torch.backends.cuda.matmul.allow_tf32 = False
    lengths = [700, 1, 93, 2048]
    for tier in bench.tiers:
        references = None
        for width in (1, 3, 4):
            runner = bench.runner(tuning, tap_layer=bench.config.n_layers - 1)
            slots = bench.place(runner, lengths[:width])
            if references is None:
                references = [reference_logits(bench, tier, slot, 11 + slot, length)
                              for slot, length in enumerate(lengths)]
            runner.step(tier.name, slots)
            logits = bench.step.state.logits[:width]
            errors[f'{tier.name} width {width}'] = max(
                float((logits[row] - references[row]).norm() / references[row].norm())
                for row in range(width))
    return errors


def parity(bench: Bench, tuning: Tuning, prompts: int, tokens: int) -> Dict[str, Any]:
    """Compare greedy tokens with the plain decoder's (bf16) up to the first difference."""
    runner, cache = bench.runner(tuning), bench.cache
    decoder = Decoder(bench.config, bench.weights, bench.rope, cache)
    generator = torch.Generator().manual_seed(2)
    same, gaps = 0, []
    for _ in range(prompts):
        length = int(torch.randint(8, 80, (1,), generator=generator))
        ids = torch.randint(0, bench.config.vocab_size, (length,), generator=generator)
        ids = ids.to(bench.device)
        cache.reset(0)
        logits = [decoder.prefill_chunk(0, ids, None, True).float()]
        expected = [int(logits[0].argmax())]
        while len(expected) < tokens:
            newest = torch.tensor(expected[-1:], device=bench.device)
            logits.append(decoder.step([0], newest)[0].float())
            expected.append(int(logits[-1].argmax()))
        cache.length[0] = cache.position[0] = length
        runner.start(0, expected[0], Sampling(), [])
        actual = expected[:1]
        while len(actual) < tokens and actual[-1] == expected[len(actual) - 1]:
            actual += runner.step('bf16', [0])
        at = len(actual) - 1
        if actual[at] == expected[at]:
            same += 1
        else:
            top = logits[at]
            gaps.append(float((top[expected[at]] - top[actual[at]]) / top.abs().max() * 128))
    return {'prompts': prompts, 'tokens': tokens, 'identical': same,
            'gap_at_difference_in_bf16_steps': [round(gap, 2) for gap in sorted(gaps)]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--shape', choices=sorted(SHAPES), default='qwen2.5-7b')
    parser.add_argument('--cubins', type=Path, default=Path('/tmp/timebill-cubins'))
    parser.add_argument('--tune', action='store_true')
    parser.add_argument('--explore', action='store_true')
    parser.add_argument('--parity', type=int, default=0, help='prompts to compare tokens on')
    parser.add_argument('--tail', type=int, default=0, help='consecutive steps for the tail table')
    arguments = parser.parse_args()
    torch.manual_seed(0)
    began = time.monotonic()
    result: Dict[str, Any] = {'device': torch.cuda.get_device_name(), 'torch': torch.__version__,
                              'date': time.strftime('%Y-%m-%d'), 'shape': arguments.shape}

    def note(what: str) -> None:
        print(f'[{time.monotonic() - began:5.1f} s] {what}', flush=True)

    result['ceilings'] = measure_ceilings(torch.device('cuda'))
    torch.cuda.empty_cache()
    note('ceilings TB/s ' + ', '.join(f'{k} {v / 1e12:.3f}' for k, v in result['ceilings'].items()))
    bench = Bench(arguments.shape, 33024, 8, arguments.cubins, arguments.tune or arguments.explore)
    bench.bandwidth = max(v for k, v in result['ceilings'].items() if k.startswith('read'))
    note('model built, tiers GB ' + ', '.join(
        f'{tier.name} {tier.nbytes / 1e9:.3f}' for tier in bench.tiers))
    tuning = DEFAULT
    result['errors'] = check(bench, tuning)
    note('logits errors ' + ', '.join(f'{k} {v:.4f}' for k, v in result['errors'].items()))
    if arguments.explore:
        bench.kernels.mode(False, 0)
        for tier, length in (('bf16', 512), ('int8', 512), ('int4', 512), ('int4', 32768)):
            timeline(bench, Tuning(), tier, [length])
        explore(bench, 512)
        bench.kernels.mode(True, 115 * 1024)
        tune_attention(bench, Tuning())
        return
    if arguments.tune:
        tuning = tune(bench, tuning, 512)
        tuning = tune_attention(bench, tuning)
        note(f'tuned: {tuning}')
        needed = kernels_needed(bench.config, bench.tiers, tuning, bench.limits)
        bench.kernels = Loaded(needed, arguments.cubins, bench.device)
        result['tuning'] = repr(tuning)
        result['errors'] = check(bench, tuning)
        note('logits errors ' + ', '.join(f'{k} {v:.4f}' for k, v in result['errors'].items()))
        for tier, length in (('bf16', 512), ('int4', 512), ('int4', 32768)):
            timeline(bench, tuning, tier, [length])
    if arguments.parity:
        result['parity'] = parity(bench, tuning, arguments.parity, 48)
        note(f'parity {result["parity"]}')
    result['steps'] = step_table(bench, tuning)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.tail:
        result['tail'] = tail_table(bench, tuning, arguments.tail)
    (arguments.out / f'decode-{arguments.shape}.json').write_text(json.dumps(result, indent=1))
    note('done')


def step_table(bench: Bench, tuning: Tuning) -> List[Dict[str, Any]]:
    runner, table = bench.runner(tuning), []
    for tier in bench.tiers:
        for width in (1, 4, 8):
            for length in (512, 8192, 32768):
                ms = bench.step_ms(runner, tier.name, [length] * width)
                floor = bench.floor_ms(tier.name, [length] * width)
                table.append({'tier': tier.name, 'width': width, 'cached_tokens': length,
                              'step_ms': round(ms, 4), 'floor_ms': round(floor, 4),
                              'ratio': round(ms / floor, 3)})
                print('{tier:5} width {width} cached {cached_tokens:6} step {step_ms:7.3f} ms '
                      'floor {floor_ms:7.3f} ratio {ratio:.3f}'.format(**table[-1]), flush=True)
    return table


def tail_table(bench: Bench, tuning: Tuning, steps: int) -> List[Dict[str, Any]]:
    """Host times of consecutive steps at a constant cached length, wait included."""
    runner, table = bench.runner(tuning), []
    for tier in ('bf16', 'int4'):
        times = []
        slots = bench.place(runner, [2048])
        state = bench.step.state
        for _ in range(steps):
            start = time.perf_counter_ns()
            runner.step(tier, slots)
            times.append((time.perf_counter_ns() - start) / 1e6)
            bench.cache.length[0] = bench.cache.position[0] = 2048
            state.lengths[0] = 2048
            state.positions[0] = 2048
        times.sort()
        row = {'tier': tier, 'steps': steps, 'median_ms': times[steps // 2],
               'p99_ms': times[steps * 99 // 100], 'p99.9_ms': times[steps * 999 // 1000],
               'max_ms': times[-1]}
        row['p99.9/median'] = row['p99.9_ms'] / row['median_ms']
        table.append({k: v if isinstance(v, (str, int)) else round(v, 4) for k, v in row.items()})
        print(table[-1], flush=True)
    return table


if __name__ == '__main__':
    main()
