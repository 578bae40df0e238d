# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Prefill, eviction, decoding, tail, memory and start-up of the engine on a GPU, in one process.

    PYTHONPATH=. python3 benchmarks/engine_h200.py --out tables [--parts prefill evict ...]

Each part of ``timebill bench`` runs on the 7B shape and on the embedded model's, on one engine
each; the results are written as JSON, the details for people go to standard output.
"""

import argparse
import json
import math
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable

import host_pace
import torch
import torch.nn.functional as F

from timebill_ros.engine import engine as engine_module
from timebill_ros.engine.cuda.prefill_graphs import PrefillGraphs
from timebill_ros.engine.decoder import Decoder
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.loading import LoadedModel
from timebill_ros.engine.rope import rope_table
from timebill_ros.engine.snapkv import prompt_scores
from timebill_ros.executor import garbage, realtime
from timebill_ros.executor.messages import Load
from timebill_ros.experiments import (
    bench_decode, bench_evict, bench_memory, bench_prefill, bench_tail, engine_bench)
from timebill_ros.experiments.random_model import random_model, write_directory, write_weights

PARTS = ('check', 'fresh', 'slots', 'prefill', 'pace', 'evict', 'worth', 'decode', 'tail', 'memory',
         'start')
STARTS = ('cold', 'last tier alone', 'warm')
BEGAN_S = time.monotonic()
START = """
import sys, time
began_s = time.monotonic()
from timebill_ros.engine.threads import prepare_environment
prepare_environment()
from timebill_ros.engine.engine import Engine
from timebill_ros.executor.messages import Load
engine = Engine.load(Load(sys.argv[1], sys.argv[2], tiers=sys.argv[4:], max_context=32768,
                          cache_dir=sys.argv[3], gpu_memory_fraction=0.9))
loaded_s = time.monotonic() - began_s
seq = engine.open_sequence(list(range(200)), 220)
while not engine.prefill_chunk(seq):
    pass
engine.next_token(seq)
for tier in engine.info.tiers:
    engine.decode_step([seq], tier)
import json, torch
cuda = torch.cuda.is_available()
peak, now = [f() if cuda else 0 for f in (
    torch.cuda.max_memory_allocated, torch.cuda.memory_allocated)]
print(json.dumps({'loaded_s': loaded_s, 'first_answer_s': time.monotonic() - began_s,
                  'peak_bytes': peak, 'allocated_bytes': now,
                  'tiers': engine.info.tiers, 'notes': engine.notes,
                  'max_batch': engine.info.max_batch}))
"""


def note(what: Any) -> None:
    print(f'[{time.monotonic() - BEGAN_S:6.1f} s] {what}', flush=True)


def check(engine: Engine, model: LoadedModel) -> list[dict[str, Any]]:
    """Compare the sliced prefill and the graphs with the plain decoder: logits, keys, scores."""
    rows = []
    rope = rope_table(model.config, model.max_context, model.device)
    scale = model.config.head_dim ** -0.5
    for length in (5, 64, 65, 700, 3000, 4096, 9000, 17000):
        if length > model.max_context - 2:
            continue
        ids = torch.randint(0, 256, (length,), generator=torch.Generator().manual_seed(length))
        seq = engine.open_sequence(ids.tolist(), length + 2)
        while not engine.prefill_chunk(seq):
            pass
        logits, keys = seq.logits.float(), engine._cache.k[:, seq.slot, :, :length].float()
        scores = seq.scores
        engine._cache.reset(seq.slot)
        with torch.inference_mode():
            decoder = Decoder(model.config, model.weights, rope, engine._cache)
            plain = decoder.prefill_chunk(seq.slot, ids.to(model.device), seq.window, True).float()
            other = engine._cache.k[:, seq.slot, :, :length]
            row = {'tokens': length, 'logits': relative(logits, plain),
                   'keys': relative(keys, other.float()), 'scores': ''}
            if scores is not None:
                row['scores'] = relative(scores, prompt_scores(seq.window, other, scale))
        rows.append(row)
        engine.close(seq)
    return rows


def in_turns(engine: Engine) -> list[dict[str, Any]]:
    """Prefill prompts one after the other, then slice by slice in turns: the results must agree."""
    prompts = [[(n + i) % 256 for i in range(n)] for n in (3000, 4000, 9000, 20000, 30000)
               if n < engine.info.max_context - 2]
    ones: list[dict[str, torch.Tensor]] = []
    for ids in prompts:
        seq = engine.open_sequence(ids, len(ids) + 2)
        while not engine.prefill_chunk(seq):
            pass
        ones.append(state_of(engine, seq))
        engine.close(seq)
    opened = [engine.open_sequence(ids, len(ids) + 2) for ids in prompts]
    waiting = list(opened)
    while waiting:
        waiting = [seq for seq in waiting if not engine.prefill_chunk(seq)]
    rows = []
    for seq, one in zip(opened, ones):
        other = state_of(engine, seq)
        rows.append({'tokens': seq.n_prompt, **{
            name: relative(other[name], one[name]) for name in one}})
        engine.close(seq)
    return rows


def state_of(engine: Engine, seq: Any) -> dict[str, torch.Tensor]:
    keys = engine._cache.k[:, seq.slot, :, :seq.n_prompt].float().clone()
    empty = torch.ones(1, device=keys.device)       # a CPU makes no scores
    return {'logits': seq.logits.float().clone(), 'keys': keys,
            'scores': empty if seq.scores is None else seq.scores.clone()}


def relative(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return round(float((ours - theirs).norm() / theirs.norm()), 5)


def fresh(engine: Engine, longest: int, count: int) -> list[dict[str, Any]]:
    """Prefill prompts of lengths not met before, then twice again: what the first time costs."""
    generator = torch.Generator().manual_seed(7)
    lengths = torch.exp(torch.rand(count, generator=generator) * math.log(longest / 16)) * 16
    for length in (64, 1000):
        bench_prefill.prefill_s(engine, [1] * length)
    rows = []
    for length in lengths.int().tolist():
        ids = torch.randint(0, 256, (length,), generator=generator).tolist()
        first_s, *again_s = (sum(bench_prefill.prefill_s(engine, ids)) for _ in range(3))
        rows.append((length, 1e3 * first_s, 1e3 * min(again_s), 1e3 * max(again_s)))
    table, edges = [], (0, 256, 1024, 2048, 4096, longest + 1)
    for low, high in zip(edges, edges[1:]):
        own = sorted((first / again, most / again, length) for length, first, again, most in rows
                     if low < length <= high)
        if own:
            table.append({'tokens': f'{low + 1}...{high}', 'prompts': len(own),
                          'first_to_again_median': round(own[len(own) // 2][0], 3),
                          'largest': round(own[-1][0], 3), 'at': own[-1][2],
                          'again_spread_median': round(
                              statistics.median(each[1] for each in own), 3)})
    for row in rows:
        print('fresh %5d: %.3f %.3f %.3f ms' % row)
    return table


def slots(engine: Engine, tier: str, length: int, steps: int) -> list[dict[str, Any]]:
    """Time steps at the same length in every slot of the cache, in turns: the place may matter."""
    ids, rows = [i % 256 for i in range(length)], []
    opened = [engine.open_sequence(ids, length + 8 * steps + 8) for _ in range(
        engine.info.max_batch)]
    for seq in opened:
        while not engine.prefill_chunk(seq):
            pass
        engine.next_token(seq)
    for turn in range(4):
        for seq in opened:
            times = []
            for _ in range(steps):
                began_s = time.perf_counter()
                engine.decode_step([seq], tier)
                times.append(time.perf_counter() - began_s)
            times.sort()
            rows.append({'turn': turn, 'slot': seq.slot, 'median_ms': 1e3 * times[steps // 2],
                         'least_ms': 1e3 * times[0]})
    for seq in opened:
        engine.close(seq)
    return rows


def attention_kernels(device: torch.device) -> None:
    """Print what the attention of one layer takes in the ways that torch has for it."""
    from torch.nn.attention import sdpa_kernel, SDPBackend
    for rows, entries in ((2048, 2048), (8192, 8192), (32768, 32768), (8192, 32768)):
        q = torch.randn((1, rows, 28, 128), device=device, dtype=torch.bfloat16).transpose(1, 2)
        k, v = (torch.randn((1, 4, entries, 128), device=device, dtype=torch.bfloat16)
                for _ in range(2))
        ways: dict[str, Callable[[], Any]] = {
            'lower right flash': lambda: torch.ops.aten._scaled_dot_product_flash_attention(
                q, k, v, 0.0, True, False)}
        if rows == entries:
            def square() -> Any:
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

            ways['default'] = square
            for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION):
                def forced(backend: Any = backend) -> Any:
                    with sdpa_kernel(backend):
                        return square()
                ways[backend.name] = forced
        for name, way in ways.items():
            try:
                best = min(engine_bench.time_s(way, device) for _ in range(4))
            except RuntimeError as error:
                note(f'attention {rows} x {entries} {name}: {str(error).splitlines()[0]}')
                continue
            work = 4 * 28 * 128 * rows * (entries - rows / 2)
            note(f'attention {rows} x {entries} {name}: {1e3 * best:.3f} ms, '
                 f'{work / best / 1e12:.0f} TFLOP/s')


def kernels(what: str, action: Callable[[], Any]) -> None:
    """Print where the GPU's time of an action goes."""
    action()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        action()
        torch.cuda.synchronize()
    events = [e for e in profile.key_averages() if e.self_device_time_total > 0]
    events.sort(key=lambda event: -event.self_device_time_total)
    total = sum(event.self_device_time_total for event in events)
    note(f'{what}: {total / 1e3:.3f} ms in {sum(e.count for e in events)} kernels')
    for event in events[:14]:
        print(f'    {event.self_device_time_total / 1e3:9.3f} ms {event.count:5} {event.key[:110]}')


def start_up(shape: str, out: Path, device: str, tiers: list[str]) -> list[dict[str, Any]]:
    """Write a checkpoint; start on it in new processes, first without compiled kernels."""
    rows = []
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made) / 'model'
        write_directory(directory, shape)
        with torch.inference_mode():
            model = random_model(directory, shape, torch.device(device), torch.bfloat16)
            write_weights(directory, model.weights, model.config)
        del model
        if device != 'cpu':
            torch.cuda.empty_cache()
        note('checkpoint written')
        for name in STARTS:
            began_s = time.monotonic()
            result = subprocess.run(
                [sys.executable, '-c', START, str(directory), device, f'{made}/cache',
                 *(tiers[-1:] if 'alone' in name else tiers)], capture_output=True, text=True)
            if result.returncode:
                note(result.stderr[-3000:])
                break
            rows.append({'start': name, 'process_s': round(time.monotonic() - began_s, 2),
                         **json.loads(result.stdout.splitlines()[-1])})
            note(rows[-1])
    return rows


def watch_capture() -> dict[str, float]:
    """Return what the next capture of a prefill's graphs takes, once it is over."""
    cost: dict[str, float] = {}
    inner = PrefillGraphs.capture

    def capture(graphs: PrefillGraphs) -> None:
        before_s, before = time.monotonic(), torch.cuda.memory_reserved()
        inner(graphs)
        cost.update(seconds=round(time.monotonic() - before_s, 2), lengths=len(graphs.lengths),
                    bytes=torch.cuda.memory_reserved() - before)
        PrefillGraphs.capture = inner

    PrefillGraphs.capture = capture
    return cost


def run_parts(shape: str, arguments: argparse.Namespace) -> dict[str, Any]:
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    began_s = time.monotonic()
    with torch.inference_mode():
        model = random_model(Path(tempfile.mkdtemp()), shape, device, dtype, arguments.max_context)
    made_s = time.monotonic()
    if arguments.plain_steps:
        engine_module.make_tiers = lambda model, load: ([], ['decoding with plain tensor code'])
    cost = watch_capture()
    engine = Engine(model, Load(shape, tiers=arguments.tiers, max_batch=8))
    report = {**engine_bench.head(engine, 'engine'), 'shape': shape,
              'max_batch': engine.info.max_batch, 'read_bytes_per_s': arguments.bandwidth}
    note(f'{shape}: weights {made_s - began_s:.1f} s, engine {time.monotonic() - made_s:.1f} s, '
         f'{engine.notes}')
    report['graphs'], report['capture'] = engine.padded_lengths, cost
    note(f'graphs {report["graphs"]}: {cost}')
    lengths = [n for n in arguments.tokens if n <= engine.info.max_context - 600]
    parts = arguments.parts
    if 'check' in parts:
        report['check'] = check(engine, model)
        print(engine_bench.table(report['check']), flush=True)
        report['in_turns'] = in_turns(engine)
        print(engine_bench.table(report['in_turns']), flush=True)
    if 'tail' in parts:
        note(f'real-time: {realtime.claim(arguments.realtime_priority, device.type) or "as asked"}')
        garbage.settle()
    for name, measure in {
            'fresh': lambda: fresh(engine, min(12000, lengths[-1]), arguments.fresh),
            'slots': lambda: [row for tier in (engine.info.tiers[0], engine.info.tiers[-1])
                              for row in slots(engine, tier, min(2048, lengths[-1]), 60)],
            'prefill': lambda: bench_prefill.measure(engine, model, lengths, arguments.repeats),
            'pace': lambda: host_pace.measure(
                engine, [n for n in lengths if n <= max(engine.padded_lengths, default=0)]),
            'evict': lambda: bench_evict.evictions(engine, lengths, arguments.repeats),
            'worth': lambda: bench_evict.worth(
                engine, model.config, [n for n in lengths if n >= 2048] or lengths, 256, 10),
            'decode': lambda: bench_decode.measure(
                engine, model.config, arguments.bandwidth, lengths, [1, 4], 30),
            'tail': lambda: [bench_tail.measure(engine, tier, min(2048, lengths[-1]),
                                                arguments.steps) for tier in engine.info.tiers],
            'memory': lambda: bench_memory.measure(engine, arguments.queries, 2048)}.items():
        if name in parts:
            report[name] = measure()
            note(name)
            print(engine_bench.table(report[name]), flush=True)
            write(arguments, report)
    if arguments.details and device.type == 'cuda':
        for length in (4500, 4501, 5200, 9001, 20001, 20002):       # lengths never seen before
            if length <= lengths[-1]:
                note(f'first prefill of {length}: '
                     f'{1e3 * sum(bench_prefill.prefill_s(engine, [1] * length)):.1f} ms')
        for length in (64, 2048):
            ids = list(range(length))
            kernels(f'prefill of {length}', lambda: bench_prefill.prefill_s(engine, ids))
        for alpha in (0.5, 0.95):
            seq = engine.open_sequence([1] * lengths[-1], lengths[-1] + 4)
            engine.assume_prefilled(seq, lengths[-1])
            steps = iter((0.1, alpha))          # the first one warms up
            kernels(f'eviction of {alpha} of {lengths[-1]}',
                    lambda steps=steps, seq=seq: engine.evict(seq, next(steps)))
            engine.close(seq)
    return report


def write(arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    path = arguments.out / f'engine-{report["shape"]}.json'
    path.write_text(json.dumps(report, indent=1), encoding='utf-8')


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS)
    parser.add_argument('--shapes', nargs='+', default=['qwen2.5-7b', 'smollm2-135m'])
    parser.add_argument('--device', default='cuda')
    parser.add_argument('--dtype', default='bfloat16')
    parser.add_argument('--tiers', nargs='+', default=['bf16', 'int8', 'int4'])
    parser.add_argument('--tokens', type=int, nargs='+',
                        default=[64, 512, 2048, 8192, 16384, 32768])
    parser.add_argument('--max-context', type=int, default=33792)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--steps', type=int, default=10000)
    parser.add_argument('--realtime-priority', type=int, default=0)
    parser.add_argument('--queries', type=int, default=2000)
    parser.add_argument('--fresh', type=int, default=60, help='prompts of lengths not met before')
    parser.add_argument('--details', action='store_true')
    parser.add_argument('--attention', action='store_true', help="torch's kernels for attention")
    parser.add_argument('--plain-steps', action='store_true', help='no decode kernels')
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.bandwidth = engine_bench.read_bandwidth(torch.device(arguments.device))
    note(f'read {arguments.bandwidth / 1e12:.3f} TB/s')
    if arguments.attention:
        attention_kernels(torch.device(arguments.device))
        torch.cuda.empty_cache()
    for shape in arguments.shapes if set(arguments.parts) != {'start'} else ():
        try:
            write(arguments, run_parts(shape, arguments))
        except Exception as error:      # the other shape may still do
            note(f'{shape}: {error!r}')
            import traceback
            traceback.print_exc()
        if arguments.device != 'cpu':
            torch.cuda.empty_cache()
    if 'start' in arguments.parts:
        rows = start_up(arguments.shapes[0], arguments.out, arguments.device, arguments.tiers)
        (arguments.out / f'start-{arguments.shapes[0]}.json').write_text(json.dumps({
            'device': torch.cuda.get_device_name() if arguments.device != 'cpu' else 'CPU',
            'torch': torch.__version__, 'date': time.strftime('%Y-%m-%d'), 'start': rows,
        }, indent=1))


if __name__ == '__main__':
    main()
