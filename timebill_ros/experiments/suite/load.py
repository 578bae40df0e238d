# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Deadlines met over offered load: questions that arrive by chance, several at once."""

from collections.abc import Sequence
import random
import time
from typing import Any

from timebill_ros.experiments.engine_host import EngineHost, GENEROUS_S
from timebill_ros.experiments.policies import fixed, Method
from timebill_ros.experiments.recorder import Row
from timebill_ros.experiments.statistics import answers, group_by, mean
from timebill_ros.experiments.suite.budgets import asked, scored, usable_methods
from timebill_ros.experiments.tasks import Item
from timebill_ros.experiments.workbench import Bench
from timebill_ros.query import Outcome

TITLE = 'Deadlines met over offered load'
ITEMS, QUICK_ITEMS = 40, 5
# Offered load: arrivals per second times the mean seconds of one question that runs alone.
LOADS, QUICK_LOADS = (0.5, 1.0, 2.0, 4.0), (0.5, 2.0)
BUDGET_FACTOR = 4.0     # budget of every question, in mean seconds of one that runs alone
CAP_TOKENS = 64         # of every answer, so that no single long one decides
COMPARED = ('vanilla', 'paper', 'joint')


def measure(bench: Bench) -> None:
    """Ask the questions one by one, then as streams of every load under every method."""
    host = bench.host()
    items = [_short(item) for item in bench.items(ITEMS, QUICK_ITEMS)]
    bench.recorder.run([(f'alone/{item.item_id}', item) for item in items],
                       lambda item: _alone(host, item))
    alone_s = mean([row['elapsed_s'] for row in bench.recorder.rows
                    if row.get('kind') == 'alone' and row['outcome'] == Outcome.COMPLETED.name])
    loads = QUICK_LOADS if bench.settings.quick else LOADS
    streams = [(f'load/{load:g}/{method.name}', (load, method)) for load in loads
               for method in usable_methods(bench, host) if method.name in COMPARED]
    bench.recorder.run(streams, lambda case: _stream(
        host, items, alone_s, bench.settings.seed, *case))


def _short(item: Item) -> Item:
    return Item(item.item_id, item.group, item.metric, item.prompt, item.golds,
                min(item.max_new_tokens, CAP_TOKENS), item.classes, item.first_line)


def _alone(host: EngineHost, item: Item) -> Row:
    return {'kind': 'alone', **asked(host, item, GENEROUS_S, fixed(0.0))}


def _stream(host: EngineHost, items: Sequence[Item], alone_s: float, seed: int, load: float,
            method: Method) -> list[Row]:
    """Send the questions as a Poisson process, the same arrivals for every method."""
    host.use(method.policy)
    drawn = random.Random(f'{seed} {load:g}')
    queries = []
    next_s = began_s = time.monotonic()
    for item in items:
        time.sleep(max(0.0, next_s - time.monotonic()))
        queries.append((item, next_s - began_s, host.submit(item, BUDGET_FACTOR * alone_s)))
        next_s += drawn.expovariate(load / alone_s)
    return [{'kind': 'load', 'load': load, 'method': method.name, 'policy': method.policy,
             'at_s': at_s, **scored(item, host.result(query))} for item, at_s, query in queries]


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return completion and score of every load and method."""
    found = group_by([row for row in rows if row.get('kind') == 'load'],
                     lambda row: (row['load'], row['method']))
    alone = [row for row in rows if row.get('kind') == 'alone']
    return {'alone_s': mean([row['elapsed_s'] for row in alone]), 'table': [
        {'load': load, 'method': method, 'budget_s': same[0]['budget_s'], **answers(same)}
        for (load, method), same in found.items()]}
