# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Average score and completion over budgets, under Kill and Skip-Next (the paper's Fig. 7)."""

from collections.abc import Sequence
import time
from typing import Any

from timebill_ros.experiments.engine_host import EngineHost, GENEROUS_S, Host
from timebill_ros.experiments.policies import fixed, Method, methods
from timebill_ros.experiments.recorder import Row
from timebill_ros.experiments.statistics import answers, group_by, quantile
from timebill_ros.experiments.tasks import Item
from timebill_ros.experiments.workbench import Bench
from timebill_ros.query import Outcome, Overrun

TITLE = 'Score and completion over budgets'
ITEMS, QUICK_ITEMS = 48, 4
# Budgets as shares of the median time that vanilla takes when nothing hurries it.
SHARES, QUICK_SHARES = (0.35, 0.5, 0.75, 1.0, 2.0), (0.75, 1.5)
STREAM_ITEMS = 12       # questions of one stream under Skip-Next
_NS = 1e9


def measure(bench: Bench) -> None:
    """Ask every question with every method and budget, under both strategies."""
    host = bench.host()
    items, reference_s = pilot(bench, host, bench.items(ITEMS, QUICK_ITEMS))
    budgets = [share * reference_s for share in (QUICK_SHARES if bench.settings.quick else SHARES)]
    usable = usable_methods(bench, host)
    if bench.settings.ros:
        bench.close()
        from timebill_ros.experiments.ros_host import RosHost
        with RosHost(bench.settings, bench.bar.say) as ros:
            for method in usable:       # one server after the other
                _ask_all(bench, ros, items, budgets, [method])
    else:
        _ask_all(bench, host, items, budgets, usable)


def _ask_all(bench: Bench, host: Host, items: Sequence[Item], budgets: Sequence[float],
             usable: Sequence[Method]) -> None:
    """Ask under both strategies."""
    # both strategies for a few questions, then the next few: what is cut off by a limit is whole
    for start in range(0, len(items), STREAM_ITEMS):
        several = items[start:start + STREAM_ITEMS]
        kill = [(f'kill/{item.item_id}/{budget_s:.4g}/{method.name}', (item, budget_s, method))
                for item in several for budget_s in budgets for method in usable]
        bench.recorder.run(kill, lambda case: _killed(host, *case))
        streams = [(f'skip-next/{start}/{budget_s:.4g}/{method.name}',
                    (several, budget_s, method)) for budget_s in budgets for method in usable]
        bench.recorder.run(streams, lambda case: _stream(host, *case))


def pilot(bench: Bench, host: EngineHost, items: Sequence[Item]) -> tuple[list[Item], float]:
    """Run vanilla unhurried: what fits the context, and the median time (s) of an answer."""
    def ask(item: Item) -> Row:
        host.use(fixed(0.0))
        return {'kind': 'pilot', **asked(host, item, GENEROUS_S)}

    bench.recorder.run([(f'pilot/{item.item_id}', item) for item in items], ask)
    rows = {row['item']: row for row in bench.recorder.rows if row.get('kind') == 'pilot'}
    fitting = [item for item in items
               if rows.get(item.item_id, {}).get('outcome') == Outcome.COMPLETED.name]
    return fitting, quantile([rows[item.item_id]['elapsed_s'] for item in fitting], 0.5)


def usable_methods(bench: Bench, host: EngineHost) -> list[Method]:
    """Return the methods that can be run; the others are noted with the reason."""
    found = methods(host.info)
    for method in found:
        if method.missing:
            bench.skip(method.label, method.missing)
    return [method for method in found if not method.missing]


def asked(host: Host, item: Item, budget_s: float, **fields: Any) -> Row:
    """Ask one question; return its row, scored."""
    return scored(item, host.ask(item, budget_s, **fields))


def scored(item: Item, row: Row) -> Row:
    """Return a row with its item and score."""
    return {'item': item.item_id, 'group': item.group, 'score': item.score(row['response']), **row}


def _killed(host: Host, item: Item, budget_s: float, method: Method) -> Row:
    host.use(method.policy)
    return {'kind': 'kill', 'method': method.name, **asked(host, item, budget_s)}


def _stream(
        host: Host, items: Sequence[Item], budget_s: float, method: Method) -> list[Row]:
    """
    Ask one question per budget, late ones holding the engine.

    The next question comes one budget after the last, or as soon as everything has ended: the time
    in which nothing happens is left out.
    """
    host.use(method.policy)
    asked_queries = []
    for item in items:
        query = host.submit(item, budget_s, overrun=Overrun.SKIP_NEXT)
        asked_queries.append((item, query))
        for _, each in asked_queries:
            host.has_ended(each, max(0.0, query.deadline_ns / _NS - time.monotonic()))
    return [{'kind': 'skip-next', 'method': method.name, **scored(item, host.result(query))}
            for item, query in asked_queries]


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return score and completion of every strategy, budget and method."""
    table = []
    asked_rows = [row for row in rows if row.get('kind') in ('kill', 'skip-next')]
    groups = group_by(asked_rows, lambda row: (row['kind'], f'{row["budget_s"]:.4g}',
                                               row['method']))
    for (strategy, budget, method), found in groups.items():
        table.append({'strategy': strategy, 'budget_s': float(budget), 'method': method,
                      **answers(found)})
    unhurried = [row for row in rows if row.get('kind') == 'pilot']
    return {'unhurried': answers(unhurried), 'table': table, 'losses': losses(table)}


def losses(table: Sequence[Row], ours: str = 'joint') -> list[str]:
    """Say in which places a baseline scores higher than ours."""
    found = []
    mine = {(row['strategy'], row['budget_s']): row for row in table if row['method'] == ours}
    for row in table:
        own = mine.get((row['strategy'], row['budget_s']))
        if own is not None and row['score'] > own['score']:
            apart = row['score_low'] > own['score_high']
            found.append(
                f'{row["strategy"]}, {row["budget_s"]:g} s: {row["method"]} {row["score"]:.3f} > '
                f'ours {own["score"]:.3f}' + (' (intervals apart)' if apart else ''))
    return found
