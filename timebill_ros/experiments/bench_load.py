# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
``timebill bench load``: deadlines met under recorded arrivals, against first come first served.

Azure LLM inference traces (2023) are stretched to multiples of the rate at which one-at-a-time
service keeps up; every deadline is twice the query's solo time. With ``--profile`` or
``--engine-table`` the clock is virtual and the engine as fast as that stored profile, or that
measured table, says; without, the model is loaded, profiled and driven in real time.
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
import json
from pathlib import Path
import platform
import time
from typing import Any

from timebill_ros.budget.planner import Planning
from timebill_ros.executor.scheduler import Scheduler
from timebill_ros.experiments.load import (
    Arrival, at_load, EndlessEngine, FirstComeFirstServed, most_met, planning_for, play_really,
    play_virtually, read_trace, Result, solo_s)
from timebill_ros.experiments.report_file import deliver
from timebill_ros.time_estimator.coefficients import load as load_coefficients
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.laws import (
    AFFINE, DECODE_STEP, Law, OVERHEAD, PIECEWISE, PREFILL)

LOADS = (0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0)
SHARE = 0.95
_SCHEDULERS = {'fifo': FirstComeFirstServed, 'ours': Scheduler}
Play = Callable[[list[Arrival], type[Any]], Result]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument('--trace', required=True, type=Path, nargs='+',
                        help='CSV of arrivals, gzipped: TIMESTAMP,ContextTokens,GeneratedTokens')
    parser.add_argument('--profile', type=Path, help='stored profile for a virtual clock')
    parser.add_argument('--engine-table', type=Path, nargs='+',
                        help='the same from JSON of "timebill bench prefill" and "decode"')
    parser.add_argument('--overhead-us', type=float, default=80.0,
                        help='with --engine-table: time per token beside the model (default 80)')
    parser.add_argument('--queries', type=int, default=400, help='arrivals per load (default 400)')
    parser.add_argument('--skip', type=int, default=0, help='arrivals to leave out before them')
    parser.add_argument('--loads', type=float, nargs='+', default=list(LOADS))
    parser.add_argument('--slack', type=float, default=2.0, help='deadline / solo time (default 2)')
    parser.add_argument('--max-batch', type=int, default=8)
    parser.add_argument('--max-context', type=int, default=4096)
    parser.add_argument('--chunk', type=int, default=256, help='tokens; of the virtual engine')
    parser.add_argument('--model', default='embedded')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--tiers', nargs='+', default=['bf16'])


def run(arguments: argparse.Namespace) -> int:
    """Play every trace at every load to both, and print a table or one JSON object."""
    virtual = arguments.profile or arguments.engine_table
    planning, play, device = _virtual(arguments) if virtual else _real(arguments)
    report: dict[str, Any] = {
        'date': time.strftime('%Y-%m-%d'), 'device': device, 'machine': platform.machine(),
        'clock': 'virtual' if virtual else 'real', 'slack': arguments.slack,
        'queries': arguments.queries, 'max_batch': arguments.max_batch, 'traces': {}}
    for path in arguments.trace:
        arrivals = read_trace(path, arguments.queries, arguments.max_context, arguments.skip)
        report['traces'][path.name.split('.')[0]] = _sweep(planning, arrivals, arguments, play)
    deliver(report, arguments, _table)
    return 0


def _sweep(planning: Planning, arrivals: list[Arrival], arguments: argparse.Namespace,
           play: Play) -> dict[str, Any]:
    found: dict[str, dict[float, Result]] = {name: {} for name in _SCHEDULERS}
    for load in arguments.loads:
        stretched = at_load(planning, arrivals, load)
        for name, scheduler in _SCHEDULERS.items():
            found[name][load] = play(stretched, scheduler)
    solo = sorted(solo_s(planning, each) for each in arrivals)
    return {
        'solo_s_median': solo[len(solo) // 2],
        'load_with_95_percent_met': {
            name: most_met(results, SHARE) for name, results in found.items()},
        'rows': [
            {'load': load, **{name: {**asdict(results[load]),
                                     'share_met': results[load].share_met}
                              for name, results in found.items()}}
            for load in arguments.loads]}


def _virtual(arguments: argparse.Namespace) -> tuple[Planning, Play, str]:
    coefficients = (load_coefficients(arguments.profile) if arguments.profile
                    else _of_table(arguments.engine_table, arguments.overhead_us))
    planning = planning_for(coefficients)

    def play(arrivals: list[Arrival], scheduler: type[Any]) -> Result:
        return play_virtually(planning, arrivals, arguments.slack, scheduler,
                              arguments.max_batch, arguments.chunk)

    return planning, play, coefficients.device


def _of_table(paths: list[Path], overhead_us: float) -> TimingCoefficients:
    """Return laws through the measured points of the best tier, straight between them."""
    table: dict[str, Any] = {}
    for path in paths:
        table.update(json.loads(path.read_text(encoding='utf-8')))
    tier = table['tiers'][0]

    def through(name: str, points: list[tuple[int, float]], **more: Any) -> Law:
        ordered = sorted(points)
        seconds = [ms / 1e3 for _, ms in ordered]
        rising = tuple(max(seconds[:index + 1]) for index in range(len(seconds)))
        return Law(name, PIECEWISE, rising, tuple(float(at) for at, _ in ordered), **more)

    steps = [row for row in table['decode'] if row['tier'] == tier]
    laws = [
        through(PREFILL, [(row['tokens'], row['ms']) for row in table['prefill']]),
        Law(OVERHEAD, AFFINE, (overhead_us / 1e6, 0.0))]
    laws += [
        through(DECODE_STEP, [(row['cached_tokens'], row['ms']) for row in steps
                              if row['width'] == width], tier=tier, width=width)
        for width in sorted({row['width'] for row in steps})]
    return TimingCoefficients(
        1, table['device'], table['model'], table['dtype'], 'table', tuple(laws))


def _real(arguments: argparse.Namespace) -> tuple[Planning, Play, str]:
    from timebill_ros.executor.messages import Load
    from timebill_ros.executor.start import start
    started = start(Load(
        arguments.model, arguments.device, tiers=arguments.tiers, max_batch=arguments.max_batch,
        max_context=arguments.max_context, predictor=''), lambda what, done: None)
    planning = planning_for(started.coefficients)
    engine = EndlessEngine(started.engine)

    def play(arrivals: list[Arrival], scheduler: type[Any]) -> Result:
        return play_really(planning, engine, arrivals, arguments.slack, scheduler,
                           started.engine.info.max_batch)

    return planning, play, started.engine.info.device


def _table(report: dict[str, Any]) -> str:
    lines = [
        f'{report["date"]}, {report["device"]}, {report["clock"]} clock, {report["queries"]} '
        f'queries per load, deadline = {report["slack"]:g} x solo time, '
        f'up to {report["max_batch"]} at once']
    for name, swept in report['traces'].items():
        most = swept['load_with_95_percent_met']
        lines += [
            '', f'{name}: median solo time {swept["solo_s_median"]:.3f} s; 95 % met up to a load '
            f'of {most["fifo"]:g} (fifo), {most["ours"]:g} (ours)',
            'load   fifo met  tokens/s    ours met  tokens/s']
        for row in swept['rows']:
            fifo, ours = row['fifo'], row['ours']
            lines.append(
                f'{row["load"]:4.2f}   {fifo["share_met"]:8.1%}  {fifo["tokens_per_s"]:8.1f}    '
                f'{ours["share_met"]:8.1%}  {ours["tokens_per_s"]:8.1f}')
    return '\n'.join(lines)
