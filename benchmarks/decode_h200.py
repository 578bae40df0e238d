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
import ctypes
import gc
import itertools
import json
from pathlib import Path
import statistics
import subprocess
import time
from typing import Any, Iterator, Sequence

import torch
from torch import Tensor

from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cuda.arguments import Phase
from timebill_ros.engine.cuda.decode_step import DecodeStep, kernels_needed
from timebill_ros.engine.cuda.driver import device_limits, Kernels
from timebill_ros.engine.cuda.nvrtc import compile_cubin
from timebill_ros.engine.cuda.program import EPILOGUES
from timebill_ros.engine.cuda.quantize import dequantize
from timebill_ros.engine.cuda.runner import StepRunner
from timebill_ros.engine.cuda.step_graphs import StepGraphs
from timebill_ros.engine.cuda.tiers import build_tier, int4_group, Tier
from timebill_ros.engine.cuda.tuning import DEFAULT, Limits, Tuning
from timebill_ros.engine.cuda.variants import sources, Step
from timebill_ros.engine.decoder import Decoder
from timebill_ros.engine.kv_cache import allocate, KVCache
from timebill_ros.engine.rope import RopeTable
from timebill_ros.engine.weights import LayerWeights, Weights
from timebill_ros.query import Sampling

SHAPES: dict[str, dict[str, Any]] = {
    'qwen2.5-7b': {
        'family': 'qwen2', 'n_layers': 28, 'd_model': 3584, 'n_heads': 28, 'n_kv_heads': 4,
        'head_dim': 128, 'd_ff': 18944, 'vocab_size': 152064, 'attention_bias': True,
        'tie_embeddings': False},
    'smollm2-135m': {
        'family': 'llama', 'n_layers': 30, 'd_model': 576, 'n_heads': 9, 'n_kv_heads': 3,
        'head_dim': 64, 'd_ff': 1536, 'vocab_size': 49152, 'attention_bias': False,
        'tie_embeddings': True}}
CUTS = ((8, 8), (8, 6), (12, 5), (16, 4))   # warps, stages
LEAST_TILES = (1, 2)

TIERS = ('bf16', 'int8', 'int4')


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


def measure_ceilings(device: torch.device) -> dict[str, float]:
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

    def __init__(self, shape: str, capacity: int, slots: int, cubins: dict[str, bytes]) -> None:
        self.device = torch.device('cuda')
        self.config = shape_config(shape)
        self.weights = random_weights(self.config, self.device)
        self.tiers = [build_tier(name, self.weights, int4_group(self.config))
                      for name in TIERS]
        self.rope = rope(self.config, 40960, self.device)
        self.cache: KVCache = allocate(self.config, slots, capacity, torch.bfloat16, self.device)
        self.cache.k.normal_()
        self.cache.v.normal_()
        self.bandwidth, self.limits = 0.0, device_limits(self.device)
        self.kernels = Kernels(cubins.values(), self.device)

    def runner(self, tuning: Tuning, **options: Any) -> StepRunner:
        step = DecodeStep(self.config, self.weights.embed, self.rope, self.cache,
                          self.kernels, tuning, self.limits, **options)
        self.step = step
        return StepRunner(step, StepGraphs(step, self.tiers), self.cache)

    def place(self, runner: StepRunner, lengths: Sequence[int],
              sampling: Sampling = Sampling()) -> list[int]:
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
            runner.collect(), runner.collect()
        return statistics.median(times)

    def floor_ms(self, tier: str, lengths: Sequence[int]) -> float:
        weights = next(t for t in self.tiers if t.name == tier).nbytes
        return (weights + self.config.kv_values_per_token * 2 * sum(lengths)) / self.bandwidth * 1e3


def tunings() -> list[Tuning]:
    """Return what `--tune` tries."""
    return [Tuning({bits: warps for bits in (16, 8, 4)}, stages, least)
            for (warps, stages), least in itertools.product(CUTS, LEAST_TILES)]


def compile_kernels(config: ModelConfig, tuned: bool, cubins: Path) -> dict[str, bytes]:
    """Compile on all processors, before this process uses the GPU."""
    needed: set[Step] = kernels_needed(config, TIERS, DEFAULT, Limits())
    for tuning in tunings() if tuned else ():
        needed |= kernels_needed(config, TIERS, tuning, Limits(), (1, 4, 8))
    units = sources(needed)
    with ProcessPoolExecutor(16) as pool:
        jobs = [pool.submit(compile_cubin, unit, 'sm_90', cubins) for unit in units]
        return {unit: job.result() for unit, job in zip(units, jobs)}


def tune(bench: Bench) -> Tuning:
    """Try all tunings on one sequence; each tier may keep warps of its own."""
    best: dict[str, Any] = {}
    for tier in bench.tiers:
        rows = []
        for tuning in tunings():
            runner = bench.runner(tuning)
            times = [bench.step_ms(runner, tier.name, [n], 5) for n in (512, 8192, 32768)]
            rows.append((sum(times), times, tuning))
        rows.sort(key=lambda row: row[0])
        for _, times, tuning in rows[:8] + rows[-2:]:
            steps = ' '.join(f'{ms:.3f}' for ms in times)
            print(f'{tier.name} {steps} {tuning}', flush=True)
        for cut in CUTS:
            row = next(row for row in rows if row[2].warps_of(16) == cut[0])
            print(f'{tier.name} best of {cut}: ' + ' '.join(f'{ms:.3f}' for ms in row[1])
                  + f' least {row[2].attention_least_tiles}')
        best[tier.name] = rows[0][2]
    return best['bf16']


def ablate(bench: Bench, tuning: Tuning, tier: Tier, length: int) -> dict[str, float]:
    """Time a step with phases left out: without attention, and with nothing but the barriers."""
    def without(keep: Any, rows: bool) -> float:
        runner = bench.runner(tuning)
        plan, table = bench.step._program(tier, 1)
        size = ctypes.sizeof(Phase)
        phases = [Phase.from_buffer_copy(bytes(table[i:i + size].cpu().numpy()))
                  for i in range(0, table.numel(), size)]
        phases = [phase for phase in phases if keep(phase)]
        for phase in phases:
            if not rows and not phase.attends and phase.epilogue != EPILOGUES['logits']:
                phase.n_rows = 0
        array = bytearray(b''.join(bytes(phase) for phase in phases))
        program = torch.frombuffer(array, dtype=torch.uint8).to(bench.device)
        bench.step._programs[tier.name, 1] = plan, program
        return bench.step_ms(runner, tier.name, [length], 7)

    return {'all': without(lambda phase: True, True),
            'without attention': without(lambda phase: not phase.attends, True),
            'attention alone': without(lambda phase: phase.attends, True),
            'no rows, no attention': without(lambda phase: not phase.attends, False)}


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


def check(bench: Bench, tuning: Tuning) -> dict[str, float]:
    """Return the relative error of the logits, per tier and batch width, worst row."""
    errors = {}
    torch.backends.cuda.matmul.allow_tf32 = False
    lengths = [700, 1, 93, 2048, 5000, 300, 17, 256]
    for tier in bench.tiers:
        references = None
        for width in (1, 3, 4, 8):
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


def parity(bench: Bench, tuning: Tuning, prompts: int, tokens: int) -> dict[str, Any]:
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
    parser.add_argument('--parity', type=int, default=0, help='prompts to compare tokens on')
    parser.add_argument('--tail', type=int, default=0, help='consecutive steps for the tail table')
    parser.add_argument('--beside', default='', help='a command to run beside the tail')
    parser.add_argument('--beside-what', default='20 ROS topics at 100 Hz')
    parser.add_argument('--no-table', action='store_true', help='no table of steps')
    arguments = parser.parse_args()
    torch.manual_seed(0)
    began = time.monotonic()
    result: dict[str, Any] = {'torch': torch.__version__,
                              'date': time.strftime('%Y-%m-%d'), 'shape': arguments.shape}

    def note(what: str) -> None:
        print(f'[{time.monotonic() - began:5.1f} s] {what}', flush=True)

    cubins = compile_kernels(shape_config(arguments.shape), arguments.tune, arguments.cubins)
    note(f'{len(cubins)} sources compiled')
    result['device'] = torch.cuda.get_device_name()
    result['ceilings'] = measure_ceilings(torch.device('cuda'))
    torch.cuda.empty_cache()
    note('ceilings TB/s ' + ', '.join(f'{k} {v / 1e12:.3f}' for k, v in result['ceilings'].items()))
    bench = Bench(arguments.shape, 33024, 8, cubins)
    bench.bandwidth = max(v for k, v in result['ceilings'].items() if k.startswith('read'))
    note('model built, tiers GB ' + ', '.join(
        f'{tier.name} {tier.nbytes / 1e9:.3f}' for tier in bench.tiers))
    tuning = DEFAULT
    result['tuning'] = repr(tuning)
    result['errors'] = check(bench, tuning)
    note('logits errors ' + ', '.join(f'{k} {v:.4f}' for k, v in result['errors'].items()))
    if arguments.tune:
        for tier in bench.tiers:
            for length in (512, 32768):
                parts = ablate(bench, tuning, tier, length)
                print(tier.name, length, {k: round(v, 3) for k, v in parts.items()}, flush=True)
        tuning = tune(bench)
        note(f'tuned: {tuning}')
        result['tuning'] = repr(tuning)
    if arguments.parity:
        result['parity'] = parity(bench, tuning, arguments.parity, 48)
        note(f'parity {result["parity"]}')
    if not arguments.no_table:
        result['steps'] = step_table(bench, tuning)
    arguments.out.mkdir(parents=True, exist_ok=True)
    file = arguments.out / f'decode-{arguments.shape}.json'
    file.write_text(json.dumps(result, indent=1))       # a tail may take longer than one has
    for row in tail_rows(bench, tuning, arguments.tail, arguments.beside,
                         arguments.beside_what) if arguments.tail else ():
        result.setdefault('tail', []).append(row)
        file.write_text(json.dumps(result, indent=1))
    note('done')


def step_table(bench: Bench, tuning: Tuning) -> list[dict[str, Any]]:
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


class TimedGraphs(StepGraphs):
    """Graphs that hold two events, so that the device's share of a step is known."""

    def __init__(self, *parts: Any, how: str) -> None:
        super().__init__(*parts)
        self.marks = [torch.cuda.Event(enable_timing=True, external=True) for _ in range(2)]
        self.how = how
        self._events = [torch.cuda.Event(blocking=how == 'asleep') for _ in range(2)]

    def _graph(self, tier: str, width: int) -> torch.cuda.CUDAGraph:
        if (tier, width) not in self._graphs:
            launch = self._step.launch

            def marked(*arguments: Any) -> None:
                capturing = torch.cuda.is_current_stream_capturing()
                if capturing:
                    self.marks[0].record()
                launch(*arguments)
                if capturing:
                    self.marks[1].record()

            self._step.launch = marked
            super()._graph(tier, width)
            self._step.launch = launch
        return self._graphs[tier, width]

    def sleep(self) -> None:
        if self.how == 'as the engine':
            super().sleep()


def tail_rows(bench: Bench, tuning: Tuning, steps: int, beside: str,
              what: str) -> Iterator[dict[str, Any]]:
    """Consecutive steps at a constant cached length, idle and beside other processes."""
    yield {'beside': 'nothing', **tail(bench, tuning, steps, 'int4', 'as the engine')}
    if beside:
        other = subprocess.Popen(beside.split())
        time.sleep(3)
        try:
            yield {'beside': what, **tail(bench, tuning, steps, 'int4', 'as the engine')}
        finally:
            other.kill()
    for tier, wait, count in (('int4', 'asleep', steps // 10), ('int4', 'busy', steps // 10),
                              ('bf16', 'as the engine', 3 * steps // 10)):
        yield {'beside': 'nothing', **tail(bench, tuning, count, tier, wait)}


def tail(bench: Bench, tuning: Tuning, steps: int, tier: str, wait: str) -> dict[str, Any]:
    """Return quantiles of a step's time, and of the device's and the host's share of it."""
    step = DecodeStep(bench.config, bench.weights.embed, bench.rope, bench.cache, bench.kernels,
                      tuning, bench.limits)
    bench.step = step
    graphs = TimedGraphs(step, bench.tiers, how=wait)
    runner = StepRunner(step, graphs, bench.cache)
    slots, state, times = bench.place(runner, [2048]), step.state, []
    gc.collect()
    gc.disable()
    for number in range(-50, steps):
        began_ns = time.perf_counter_ns()
        runner.enqueue(tier, slots)
        launched_ns = time.perf_counter_ns()
        runner.sleep()
        runner.collect()
        ended_ns = time.perf_counter_ns()
        if number >= 0:
            device_ms = graphs.marks[0].elapsed_time(graphs.marks[1])
            times.append(((ended_ns - began_ns) / 1e6, device_ms, (launched_ns - began_ns) / 1e6))
        bench.cache.length[0] = bench.cache.position[0] = 2048
        state.lengths[0] = 2048
        state.positions[0] = 2048
    gc.enable()
    whole, device, launch = (sorted(column) for column in zip(*times))
    host = sorted(all_ms - device_ms for all_ms, device_ms, _ in times)
    row: dict[str, Any] = {'tier': tier, 'wait': wait, 'steps': steps}
    for name, column in (('step', whole), ('device', device), ('host', host), ('launch', launch)):
        row[name] = {share: round(column[min(steps - 1, int(float(share) * steps))], 4)
                     for share in ('0.5', '0.99', '0.999', '1')}
    row['p99.9/median'] = round(row['step']['0.999'] / row['step']['0.5'], 4)
    row['device p99.9/median'] = round(row['device']['0.999'] / row['device']['0.5'], 4)
    # What the slowest thousandth of the steps has above the medians, on either side.
    worst = sorted(times)[-max(1, steps // 1000):]
    row['worst_device_excess_ms'] = round(
        statistics.mean(each[1] for each in worst) - row['device']['0.5'], 4)
    row['worst_host_excess_ms'] = round(
        statistics.mean(each[0] - each[1] for each in worst) - row['host']['0.5'], 4)
    print(row, flush=True)
    return row


if __name__ == '__main__':
    main()
