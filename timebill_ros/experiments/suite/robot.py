# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
A planner in the loop: it ticks at 1 Hz, asks what to do next, and acts on a default at a miss.

Budgets come from a schedule between 0.5 and 5 s. A question that is still open at the next tick
blocks it, as it would block a robot. Against ours: the same loop around ``generate`` of
transformers with ``max_time``, with the same margin taken off. Both may act on an answer that was
cut off in time: ours asks for a soft landing.
"""

from collections.abc import Callable, Sequence
import random
import time
from typing import Any

from timebill_ros.experiments.plain_loop import PlainLoop
from timebill_ros.experiments.policies import Method, methods
from timebill_ros.experiments.recorder import Row
from timebill_ros.experiments.statistics import group_by, IN_TIME, interval, mean, quantile
from timebill_ros.experiments.suite.budgets import scored
from timebill_ros.experiments.tasks import generated, Item
from timebill_ros.experiments.workbench import Bench
from timebill_ros.query import Overrun

TITLE = 'A planner that ticks at 1 Hz'
PERIOD_S = 1.0
BUDGETS_S = (0.5, 5.0)
TICKS, QUICK_TICKS = 30, 5
BATCH = 6               # ticks per case
SET = 'robot'
MARGIN_S = 0.05         # the node's default delivery_margin_s, for the plain loop too
PLAIN = 'plain generate'

Ask = Callable[[Item, float], Row]
Tick = tuple[Item, float]


def measure(bench: Bench) -> None:
    """Run the loop around ours, then around plain generate, over the same questions."""
    settings = bench.settings
    ticks = schedule(settings.seed, settings.items or (
        QUICK_TICKS if settings.quick else TICKS), settings.quick)
    batches = [(start, ticks[start:start + BATCH]) for start in range(0, len(ticks), BATCH)]
    host = bench.host()
    usable = [each for each in methods(host.info) if not each.missing]
    ours, sampling = usable[-1], host.info.sampling
    if settings.ros:
        bench.close()
        _through_ros(bench, ours, batches)
    else:
        host.use(ours.policy)
        cases = [(f'{ours.label}/{start}', batch) for start, batch in batches]
        bench.recorder.run(cases, lambda batch: loop(
            ours.label, batch, lambda item, budget_s: host.ask(
                item, budget_s, overrun=Overrun.SOFT_LANDING)))
        bench.close()
    plain = [(f'{PLAIN}/{start}', batch) for start, batch in batches]
    if any(True for _ in bench.recorder.todo(plain)):
        with PlainLoop(settings.model, settings.device, sampling, MARGIN_S, settings.cache_dir,
                       settings.engine_python) as asked:
            asked.ask(ticks[0][0], BUDGETS_S[1])     # warms it up, as ours has been
            bench.recorder.run(plain, lambda batch: loop(PLAIN, batch, asked.ask))


def _through_ros(bench: Bench, ours: Method, batches: Sequence[tuple[int, list[Tick]]]) -> None:
    """Run the loop as a ROS node beside a server."""
    label = f'{ours.label}, ROS action'
    cases = [(f'{label}/{start}', batch) for start, batch in batches]
    if any(True for _ in bench.recorder.todo(cases)):
        from timebill_ros.experiments.robot_node import ask_through_node
        from timebill_ros.experiments.ros_host import RosHost
        with RosHost(bench.settings, bench.bar.say, MARGIN_S) as ros:
            ros.use(ours.policy)
            bench.recorder.run(cases, lambda batch: ask_through_node(
                ros, batch, lambda item, row: _row(label, item, row)))


def schedule(seed: int, count: int, quick: bool) -> list[Tick]:
    """Return the question and the budget of every tick."""
    longest = generated.QUICK_LONGEST if quick else generated.LONGEST
    items = [item for item in generated.generated(longest, seed)
             if item.item_id.startswith(f'{SET}/')]
    drawn = random.Random(seed)
    drawn.shuffle(items)
    return [(items[number % len(items)], drawn.uniform(*BUDGETS_S)) for number in range(count)]


def loop(label: str, ticks: Sequence[Tick], ask: Ask) -> list[Row]:
    """Tick: ask, act, and wait for the next whole period."""
    began_s = time.monotonic()
    rows = []
    for item, budget_s in ticks:
        rows.append(_row(label, item, ask(item, budget_s)))
        time.sleep(PERIOD_S - (time.monotonic() - began_s) % PERIOD_S)
    return rows


def _row(label: str, item: Item, row: Row) -> Row:
    """Return the row of a tick: what was answered, and what the robot did."""
    in_time = row['outcome'] in IN_TIME
    acted = in_time and any(name in row['response'] for name in item.classes)
    return {'kind': 'tick', 'method': label, 'acted': 'answer' if acted else 'default',
            'late_s': max(0.0, row['elapsed_s'] - row['budget_s']), **scored(item, row)}


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return for both loops the share of ticks that acted on an answer, in time."""
    table = []
    for method, ticks in group_by([row for row in rows if row.get('kind') == 'tick'],
                                  lambda row: row['method']).items():
        acted = [float(row['acted'] == 'answer') for row in ticks]
        low, high = interval(acted)
        table.append({
            'method': method, 'n': len(ticks), 'acted': mean(acted), 'acted_low': low,
            'acted_high': high,
            'right': mean([float(row['acted'] == 'answer') * row['score'] for row in ticks]),
            'in_time': mean([float(row['outcome'] in IN_TIME) for row in ticks]),
            'late': mean([float(row['late_s'] > 0.0) for row in ticks]),
            'latest_s': max(row['late_s'] for row in ticks),
            'median_s': quantile([row['elapsed_s'] for row in ticks], 0.5),
            'outcomes': {name: len(same) for name, same in group_by(
                ticks, lambda row: row['outcome']).items()}})
    return {'table': table}
