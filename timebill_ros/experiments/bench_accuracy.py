# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill bench accuracy``: how well times are predicted, on queries that nobody profiled."""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
import importlib.util
from math import isnan
import os
from pathlib import Path
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any, TYPE_CHECKING

from timebill_ros.executor.engine_command import engine_environment, engine_python
from timebill_ros.executor.messages import Load
from timebill_ros.experiments import accuracy_report
from timebill_ros.experiments.report_file import deliver, to_json
from timebill_ros.time_estimator.coefficients import save
from timebill_ros.time_estimator.profiler import (
    profile, Progress, START_UP, THOROUGH, THOROUGH_GPU)

if TYPE_CHECKING:
    from timebill_ros.engine.engine import Engine

_PACKAGE_ROOT = Path(__file__).resolve().parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument('--model', default='embedded', help='as `timebill profile` has it')
    parser.add_argument('--shape', default='', help='random weights of this shape instead: '
                        'qwen2.5-7b, qwen2.5-0.5b or smollm2-135m')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--tiers', default='', help='comma-separated; empty = as by default')
    parser.add_argument('--max-batch', type=int, default=4)
    parser.add_argument('--max-tokens', type=int, default=4096, help='longest prompt')
    parser.add_argument('--responses', type=int, nargs=2, default=(8, 64), metavar=('FROM', 'TO'))
    parser.add_argument('--queries', type=int, default=60, help='of the first phase')
    parser.add_argument('--repeat', type=int, default=4, metavar='N',
                        help='ask every N-th of them twice in a row; 0 = none')
    parser.add_argument('--read-bandwidth', action='store_true',
                        help='read off the memory bandwidth of the CPU beside each query')
    parser.add_argument('--load', type=int, default=0, metavar='N',
                        help='then N queries with the device busy for others, and N without again')
    parser.add_argument('--threads', type=int, default=0, metavar='N',
                        help='then queries with N CPU threads instead of those profiled with')
    parser.add_argument('--thread-queries', type=int, default=40)
    parser.add_argument('--short-profile', action='store_true', help='that of a first start')
    parser.add_argument('--profile-s', type=float, default=0.0, help='0 = chosen')
    parser.add_argument('--profile-out', type=Path,
                        help='keep the profile with its raw samples, for `timebill plot`')
    parser.add_argument('--name', default='', help='heading of the tables')
    parser.add_argument('--engine-python', default='', help='as the server has it')


def run(arguments: argparse.Namespace) -> int:
    """Measure and print the tables; in the engine's interpreter if this one has no torch."""
    if importlib.util.find_spec('torch') is None:
        python = engine_python(arguments.engine_python)
        environment = {**engine_environment(os.environ), 'PYTHONPATH': str(_PACKAGE_ROOT)}
        given = sys.argv[sys.argv.index('accuracy') + 1:]
        program = 'from timebill_ros.cli import main; import sys; sys.exit(main(sys.argv[1:]))'
        return subprocess.run(
            [python, '-c', program, 'bench', 'accuracy', *given], env=environment).returncode

    def keep(so_far: dict[str, Any]) -> None:
        if arguments.out:
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(to_json(so_far), encoding='utf-8')

    result = measure(arguments, keep)
    deliver(result, arguments, accuracy_report.table)
    return 0


def measure(
        arguments: argparse.Namespace, keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Profile, ask, and return everything; what there is after each phase is kept."""
    from timebill_ros.engine.threads import prepare_environment
    prepare_environment()
    from timebill_ros.engine.engine import Engine
    from timebill_ros.engine.meter import EngineMeter
    from timebill_ros.experiments import accuracy
    load = Load(
        arguments.model, arguments.device, max_batch=arguments.max_batch,
        max_context=arguments.max_tokens + max(arguments.responses) + 16)
    if arguments.tiers:
        load = replace(load, tiers=arguments.tiers.split(','))
    engine = random_engine(arguments.shape, load) if arguments.shape else Engine.load(load)
    effort = THOROUGH_GPU if engine.device.type == 'cuda' else THOROUGH
    if arguments.short_profile:
        effort = START_UP
    effort = replace(
        effort, budget_s=arguments.profile_s or effort.budget_s, max_tokens=arguments.max_tokens)
    began_s = time.perf_counter()
    base, samples = profile(EngineMeter(engine), effort, _tell_profile)
    profile_s = time.perf_counter() - began_s
    if arguments.profile_out:
        save(arguments.profile_out, base, {'samples': [asdict(each) for each in samples]})
    span = accuracy.Span(arguments.max_tokens, tuple(arguments.responses))
    asker = accuracy.Asker(engine, base, span, read_bandwidth=arguments.read_bandwidth)
    phases: list[tuple[str, int, Any]] = [('idle', arguments.queries, nullcontext)]
    if arguments.load:
        phases += [('loaded', arguments.load, lambda: accuracy.device_load(engine.device)),
                   ('idle again', arguments.load, nullcontext)]
    if arguments.threads:
        phases.append((f'{arguments.threads} threads', arguments.thread_queries,
                       lambda: accuracy.cpu_threads(asker, load, arguments.threads)))
    result = {
        'meta': {
            'name': arguments.name or engine.info.name, 'device': engine.info.device,
            'dtype': engine.info.dtype, 'tiers': engine.info.tiers,
            'max_batch': engine.info.max_batch, 'date': time.strftime('%Y-%m-%d'),
            'versions': _versions(), 'command': _command(), 'longest': arguments.max_tokens,
            'responses': list(arguments.responses), 'profile_s': round(profile_s, 2),
            'profiled_tokens': max(each.n_tokens for each in samples), 'samples': len(samples),
            'points': len({(each.law, each.tier, each.width, each.point, each.n_done)
                           for each in samples}), 'load_average': os.getloadavg()},
        'laws': [{**law, 'mape': None if isnan(law['mape']) else law['mape']}
                 for law in accuracy.laws_of(base)],
        'rows': asker.rows, 'batches': [], 'mixed': []}
    for phase in phases:
        accuracy.run_phase(
            asker, *phase, _tell, arguments.repeat if phase is phases[0] else 0)
        keep(result)
    result['batches'] = accuracy.batches(engine, base, 16, arguments.max_tokens, 3)
    result['mixed'] = accuracy.mixed(engine, base, [
        arguments.max_tokens // share for share in (8, 4, 2, 1)])
    return result


def random_engine(shape: str, load: Load) -> 'Engine':
    """Return an engine with a model of random weights, of one of ``random_model.SHAPES``."""
    import torch
    from timebill_ros.engine.engine import Engine
    from timebill_ros.engine.loading import choose_device
    from timebill_ros.experiments.random_model import random_model
    device = choose_device(load.device)
    dtype = torch.float32 if device.type == 'cpu' else torch.bfloat16
    with tempfile.TemporaryDirectory() as directory:
        model = random_model(Path(directory), shape, device, dtype, load.max_context)
        return Engine(model, load)


def _versions() -> str:
    import torch
    return f'torch {torch.__version__}, Python {platform.python_version()}'


def _command() -> str:
    return ' '.join(['timebill bench accuracy', *sys.argv[sys.argv.index('accuracy') + 1:]])


def _tell_profile(progress: Progress) -> None:
    _tell(f'profile: {progress.law}, {progress.done} of {progress.total}, '
          f'about {progress.left_s:.0f} s left')


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(f'\r\x1b[K{text}', end='', file=sys.stderr, flush=True)
