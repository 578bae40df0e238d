# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Predicted response lengths against the target's own (the paper's Table 1).

What is measured here is what serves queries: the predictor in the engine, on prompts that it was
not trained on, answered by the target under the server's default sampling. The comparison of all
predictors on thousands of recorded lengths is ``timebill predictor``'s.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from timebill_ros.experiments.engine_host import EngineHost, GENEROUS_S
from timebill_ros.experiments.policies import paper, PAPER_K
from timebill_ros.experiments.recorder import Row
from timebill_ros.experiments.statistics import mean, quantile
from timebill_ros.experiments.suite.budgets import asked
from timebill_ros.experiments.tasks import Item, longbench, spread
from timebill_ros.experiments.workbench import Bench
from timebill_ros.length_predictor.data import read_prompts
from timebill_ros.length_predictor.metrics import evaluate_points
from timebill_ros.length_predictor.split import split_prompts

TITLE = 'Accuracy of the length predictor in force'
ITEMS, QUICK_ITEMS = 120, 4
CAP_TOKENS, QUICK_CAP_TOKENS = 512, 48
PROMPTS = 'prompts.jsonl.gz'
QUICK_CHARACTERS = 400      # longest prompt of --quick
HELD_OUT = 'held-out'


def measure(bench: Bench) -> None:
    """Have the target answer held-out prompts; the predictor speaks after each prefill."""
    host = bench.host()
    cases = [(f'length/{item.item_id}', item) for item in _items(bench)]
    bench.recorder.run(cases, lambda item: _answered(host, item))
    if not any(row['timing']['n_predicted'] for row in bench.recorder.rows if 'timing' in row):
        bench.skip('predictor', 'no length predictor is in force; the baselines stand alone')


def _items(bench: Bench) -> list[Item]:
    """Return held-out prompts where the prompt file is at hand, else the generated questions."""
    quick = bench.settings.quick
    cap = QUICK_CAP_TOKENS if quick else CAP_TOKENS
    path = longbench.data_file(bench.settings.data_folder)
    if path is None or not path.with_name(PROMPTS).is_file():
        bench.skip('held-out prompts', f'no {PROMPTS} at hand; generated questions instead')
        return [_capped(item, cap) for item in bench.items(ITEMS, QUICK_ITEMS)]
    prompts = [each for each in read_prompts(path.with_name(PROMPTS))
               if not quick or len(each.text) <= QUICK_CHARACTERS]
    if quick:       # grouping near-duplicates of all prompts takes longer than the experiment
        prompts = prompts[::len(prompts) // 200]
    place = split_prompts(prompts).place
    items = [Item(each.prompt_id, each.source, 'f1', each.text, (), cap)
             for each in prompts if place[each.prompt_id] == HELD_OUT]
    return spread(items, bench.settings.items or (QUICK_ITEMS if quick else ITEMS))


def _capped(item: Item, cap: int) -> Item:
    return Item(item.item_id, item.group, item.metric, item.prompt, item.golds, cap)


def _answered(host: EngineHost, item: Item) -> Row:
    return {'kind': 'length', 'cap': item.max_new_tokens,
            **asked(host, item, GENEROUS_S, paper(PAPER_K))}


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the errors of the predictor in force, and of the median and mean of all lengths."""
    answered = [row for row in rows if row.get('kind') == 'length'
                and row['timing']['n_generated'] > 0]
    lengths = np.array([row['timing']['n_generated'] for row in answered])
    if len(lengths) < 2:
        return {'n': len(lengths), 'table': []}
    median, average = float(np.median(lengths)), float(lengths.mean())
    table = [{'predictor': 'median / mean of these lengths', **_errors(
        np.full(len(lengths), median), lengths, np.full(len(lengths), average))}]
    names = sorted({row['timing']['predictor'] for row in answered} - {''})
    for name in names:
        mine = [row for row in answered if row['timing']['predictor'] == name]
        predicted = np.array([float(row['timing']['n_predicted']) for row in mine])
        real = np.array([row['timing']['n_generated'] for row in mine])
        seconds = [row['timing']['predict'] for row in mine if row['timing']['predict'] is not None]
        held = [row['timing']['n_worst'] >= row['timing']['n_generated'] for row in mine]
        table.append({'predictor': name, **_errors(predicted, real, predicted),
                      'predict_s': quantile(seconds, 0.5), 'within_worst': mean(
                          [float(each) for each in held])})
    caps = [float(row['timing']['n_generated'] >= row['cap']) for row in answered]
    return {'n': len(answered), 'at_cap': mean(caps), 'k': PAPER_K, 'table': table}


def _errors(median: Any, lengths: Any, average: Any) -> dict[str, float]:
    return {'n': len(lengths), **evaluate_points(median, average, lengths)}
