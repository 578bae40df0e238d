# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of the engine share: which model, its times, the machine's ceilings."""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
import statistics
import tempfile
import time
from typing import Any

import torch

from timebill_ros.engine.engine import Engine
from timebill_ros.engine.loading import choose_device, load_model, LoadedModel
from timebill_ros.executor.messages import Load
from timebill_ros.experiments.random_model import random_model, SHAPES

Row = dict[str, Any]
_READ_BYTES = {'cuda': 8 * 1024 ** 3, 'cpu': 512 * 1024 ** 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments that all have."""
    parser.epilog = 'Runs in the interpreter of the engine (torch and transformers).'
    parser.add_argument('--model', default='embedded', help='as for "timebill serve"')
    parser.add_argument('--shape', choices=sorted(SHAPES), help='random weights instead')
    parser.add_argument('--device', default='auto', help='as for "timebill serve"')
    parser.add_argument('--tiers', nargs='+', default=['bf16', 'int8', 'int4'])
    parser.add_argument('--max-context', type=int, default=0)
    parser.add_argument('--tokens', type=int, nargs='+', help='prompt or cache lengths')
    parser.add_argument('--repeats', type=int, default=5)


def open_engine(arguments: argparse.Namespace) -> tuple[Engine, LoadedModel]:
    """Load the model that the arguments name."""
    load = Load(arguments.model, arguments.device, tiers=arguments.tiers, max_batch=8,
                max_context=arguments.max_context)
    if not arguments.shape:
        model = load_model(load, lambda what, done: None)
        return Engine(model, load), model
    device = choose_device(load.device)
    directory = Path(tempfile.mkdtemp(prefix='timebill-'))
    dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
    with torch.inference_mode():
        model = random_model(directory, arguments.shape, device, dtype,
                             arguments.max_context or 40960)
    return Engine(model, load), model


def lengths(arguments: argparse.Namespace, engine: Engine, default: Iterable[int],
            room: int = 64) -> list[int]:
    """Return the lengths asked for that the context has room for."""
    limit = engine.info.max_context - room
    return [each for each in arguments.tokens or default if each <= limit]


def read_bandwidth(device: torch.device) -> float:
    """Return the bytes per second that can be read, the best of a few ways and trials."""
    data = torch.ones(_READ_BYTES[device.type] // 4, dtype=torch.float32, device=device)
    matrix, vector = data.view(-1, 8192), torch.ones(8192, device=device)
    ways = (lambda: data.sum(), lambda: matrix @ vector, lambda: data.max())
    return data.numel() * 4 / min(time_s(way, device) for way in ways for _ in range(5))


def time_s(action: Callable[[], Any], device: torch.device) -> float:
    """Return the time of an action, the device's work included."""
    began_s = time.perf_counter()
    action()
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter() - began_s


def median_ms(times: Iterable[float]) -> float:
    """Return the median of seconds in milliseconds."""
    return round(1e3 * statistics.median(times), 4)


def head(engine: Engine, what: str) -> Row:
    """Return what a report begins with."""
    return {'benchmark': what, 'date': time.strftime('%Y-%m-%d'), 'device': engine.info.device,
            'torch': torch.__version__, 'model': engine.info.name, 'dtype': engine.info.dtype,
            'tiers': engine.info.tiers, 'notes': engine.notes}


def text(report: Row) -> str:
    """Return a report for people, its rows as tables."""
    return '\n'.join(
        table(value) if isinstance(value, list) and value and isinstance(value[0], dict)
        else f'{name}: {value}' for name, value in report.items())


def table(rows: list[Row]) -> str:
    """Return rows of the same keys as lines of columns."""
    cells = [list(rows[0]), *([f'{value:g}' if isinstance(value, float) else str(value)
                               for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return '\n'.join('  '.join(cell.rjust(width) for cell, width in zip(row, widths))
                     for row in cells)
