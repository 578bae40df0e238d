# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The pessimistic factor k from 1 to 8 at a fixed budget (the paper's Fig. 8), and learned k."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from timebill_ros.budget.planner import PlannerConfig
from timebill_ros.experiments.engine_host import EngineHost
from timebill_ros.experiments.policies import paper
from timebill_ros.experiments.recorder import Row
from timebill_ros.experiments.statistics import answers, group_by, mean
from timebill_ros.experiments.suite.budgets import asked, pilot
from timebill_ros.experiments.tasks import Item
from timebill_ros.experiments.workbench import Bench

TITLE = 'The pessimistic factor at a fixed budget'
ITEMS, QUICK_ITEMS = 72, 4
FACTORS, QUICK_FACTORS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0), (1.0, 5.0)
BUDGET_SHARE = 0.75     # of the median time that vanilla takes when nothing hurries it
LEARNED = 'learned'


def measure(bench: Bench) -> None:
    """Ask every question under every factor at one budget."""
    host = bench.host()
    quick = bench.settings.quick
    items, reference_s = pilot(bench, host, bench.items(ITEMS, QUICK_ITEMS))
    if not any(row['timing']['n_predicted'] for row in bench.recorder.rows if 'timing' in row):
        bench.skip('k', 'no length predictor is in force: the worst case is the cap, whatever k')
    policies = {f'{k:g}': paper(k) for k in (QUICK_FACTORS if quick else FACTORS)}
    if 'pessimism' in {each.name for each in fields(PlannerConfig)}:
        policies[LEARNED] = {**paper(1.0), 'pessimism': LEARNED}
    else:
        bench.skip('learned k', 'this version of the planner has a fixed k only')
    budget_s = BUDGET_SHARE * reference_s
    # one factor after the other: a learned k learns from the queries before
    cases = [(f'k/{name}/{item.item_id}', (item, budget_s, name, policy))
             for name, policy in policies.items() for item in items]
    bench.recorder.run(cases, lambda case: _with_factor(host, *case))


def _with_factor(host: EngineHost, item: Item, budget_s: float, name: str,
                 policy: dict[str, Any]) -> Row:
    return {'kind': 'k', 'k': name, **asked(host, item, budget_s, policy)}


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return score and completion of every k."""
    found = group_by([row for row in rows if row.get('kind') == 'k'], lambda row: row['k'])
    return {'table': [
        {'k': k, 'budget_s': same[0]['budget_s'], **answers(same),
         'alpha': mean([row['timing']['alpha'] for row in same]),
         'k_used': mean([row['timing']['pessimistic_factor'] for row in same
                         if row['timing']['pessimistic_factor'] is not None])}
        for k, same in found.items()]}
