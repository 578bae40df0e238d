# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Average score and completion over budgets, under Kill and Skip-Next (the paper's Fig. 7)."""

from collections.abc import Iterable, Sequence
import time
from typing import Any

from timebill_ros.experiments.engine_host import EngineHost, GENEROUS_S, Host
from timebill_ros.experiments.policies import fixed, Method, methods
from timebill_ros.experiments.recorder import Row
from timebill_ros.experiments.statistics import (
    ahead, answers, completed, group_by, mean, quantile)
from timebill_ros.experiments.tasks import Item
from timebill_ros.experiments.workbench import Bench
from timebill_ros.query import NS_PER_S, Outcome, Overrun

TITLE = 'Score and completion over budgets'
ITEMS, QUICK_ITEMS = 208, 3
# Budgets as shares of the median time that vanilla takes when nothing hurries it.
SHARES, QUICK_SHARES = (0.35, 0.6, 1.0, 2.0, 4.0), (0.75, 1.5)
OURS = 'joint'
ROS_MARGIN_S = 0.01     # delivery margin of --ros: budgets are tens of milliseconds on a fast GPU
STREAM_ITEMS = 8        # questions of one stream under Skip-Next
STREAM_EVERY = 3        # of so many times 8 questions: late ones run on, so a stream takes longer


def measure(bench: Bench) -> None:
    """Ask the questions with every method and budget, under both strategies."""
    host = bench.host()
    items, reference_s = pilot(bench, host, bench.items(ITEMS, QUICK_ITEMS))
    budgets = [share * reference_s for share in (QUICK_SHARES if bench.settings.quick else SHARES)]
    usable = usable_methods(bench, host)
    if bench.settings.ros:
        bench.close()
        from timebill_ros.experiments.ros_host import RosHost
        with RosHost(bench.settings, bench.bar.say, ROS_MARGIN_S) as ros:
            for method in usable:       # one server after the other
                _ask_all(bench, ros, items, budgets, [method])
    else:
        _ask_all(bench, host, items, budgets, usable)


def _ask_all(bench: Bench, host: Host, items: Sequence[Item], budgets: Sequence[float],
             usable: Sequence[Method]) -> None:
    """Ask all questions under Kill, every third eight of them under Skip-Next too."""
    # both strategies for a few questions, then the next few: what is cut off by a limit is whole
    for start in range(0, len(items), STREAM_ITEMS):
        several = items[start:start + STREAM_ITEMS]
        kill = [(f'kill/{item.item_id}/{budget_s:.4g}/{method.name}', (item, budget_s, method))
                for item in several for budget_s in budgets for method in usable]
        bench.recorder.run(kill, lambda case: _killed(host, *case))
        if start // STREAM_ITEMS % STREAM_EVERY:
            continue
        streams = [(f'skip-next/{start}/{budget_s:.4g}/{method.name}',
                    (several, budget_s, method)) for budget_s in budgets for method in usable]
        bench.recorder.run(streams, lambda case: _stream(host, *case))


def pilot(bench: Bench, host: EngineHost, items: Sequence[Item]) -> tuple[list[Item], float]:
    """Run vanilla unhurried: what fits the context, and the median time (s) of an answer."""
    def ask(item: Item) -> Row:
        return {'kind': 'pilot', **asked(host, item, GENEROUS_S, fixed(0.0))}

    bench.recorder.run([(f'pilot/{item.item_id}', item) for item in items], ask)
    rows = {row['item']: row for row in bench.recorder.rows if row.get('kind') == 'pilot'}
    fitting = [item for item in items
               if rows.get(item.item_id, {}).get('outcome') == Outcome.COMPLETED.name]
    return fitting, median_s(rows.values())


def median_s(unhurried: Iterable[Row]) -> float:
    """Return the median time of the answers that came, s."""
    return quantile([row['elapsed_s'] for row in unhurried
                     if row['outcome'] == Outcome.COMPLETED.name], 0.5)


def usable_methods(bench: Bench, host: EngineHost) -> list[Method]:
    """Return the methods that were asked for and can be run; others are noted with the reason."""
    wanted = bench.settings.methods
    found = [each for each in methods(host.info) if not wanted or each.name in wanted]
    for method in found:
        if method.missing:
            bench.skip(method.label, method.missing)
    return [method for method in found if not method.missing]


def asked(host: Host, item: Item, budget_s: float, policy: dict[str, Any]) -> Row:
    """Ask one question under a policy; return its row, scored."""
    host.use(policy)
    return {'policy': policy, **scored(item, host.ask(item, budget_s))}


def scored(item: Item, row: Row) -> Row:
    """Return a row with its item and score."""
    return {'item': item.item_id, 'group': item.group, 'score': item.score(row['response']), **row}


def _killed(host: Host, item: Item, budget_s: float, method: Method) -> Row:
    return {'kind': 'kill', 'method': method.name, **asked(host, item, budget_s, method.policy)}


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
            host.has_ended(each, max(0.0, query.deadline_ns / NS_PER_S - time.monotonic()))
    return [{'kind': 'skip-next', 'method': method.name, 'policy': method.policy,
             **scored(item, host.result(query))} for item, query in asked_queries]


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return score and completion of every strategy, budget and method, on the same questions."""
    table = []
    asked_rows = [row for strategy in ('kill', 'skip-next')
                  for row in asked_everywhere([row for row in rows if row.get('kind') == strategy])]
    groups = group_by(asked_rows, lambda row: (row['kind'], f'{row["budget_s"]:.4g}',
                                               row['method']))
    for (strategy, budget, method), found in groups.items():
        ours = groups.get((strategy, budget, OURS), []) if method != OURS else []
        table.append({'strategy': strategy, 'budget_s': float(budget), 'method': method,
                      **answers(found), **ahead(ours, found), **_fitting(found)})
    unhurried = [row for row in rows if row.get('kind') == 'pilot']
    return {'unhurried': {**answers(unhurried), 'median_s': median_s(unhurried)}, 'table': table,
            'losses': losses(table)}


def asked_everywhere(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of questions that were asked as often as any: a limit may have cut some."""
    by_item = group_by(rows, lambda row: row['item'])
    most = max((len(same) for same in by_item.values()), default=0)
    return [row for row in rows if len(by_item[row['item']]) == most]


def _fitting(rows: Sequence[Row]) -> Row:
    """Return for how many queries the worst case fitted, and which share of them is whole."""
    fitting = [row for row in rows if row['timing'].get('feasible')]
    return {'fitting': len(fitting), 'fitting_completed': mean(
        [float(completed(row)) for row in fitting])}


def losses(table: Sequence[Row]) -> list[str]:
    """Say in which places a baseline scores higher than ours."""
    own = {(row['strategy'], row['budget_s']): row['score']
           for row in table if row['method'] == OURS}
    return [f'{row["strategy"]}, {row["budget_s"]:g} s: {row["method"]} {row["score"]:.3f} > ours '
            f'{own[row["strategy"], row["budget_s"]]:.3f}'
            + (' (interval of the difference without 0)' if row['ahead_high'] < 0.0 else '')
            for row in table if row['ahead'] < 0.0]
