# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Markdown tables of the summaries of experiments, for docs/experiments.md and README.md."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from timebill_ros.markdown import markdown_table, MISSING, number, percent

Row = dict[str, Any]

OURS, OURS_LABEL = 'joint', 'ours'
LABELS = {**{f'fixed-{alpha}': f'fixed α {alpha}' for alpha in ('0.25', '0.5', '0.75', '0.95')},
          'quantised': 'quantised alone', 'paper': "paper's policy", OURS: f'**{OURS_LABEL}**'}
STRATEGIES = {'kill': 'Kill', 'skip-next': 'Skip-Next'}


def label(method: str) -> str:
    """Return what a method is called in a table."""
    return LABELS.get(method, method)


def seconds(budget_s: float) -> str:
    """Return a budget as people write it."""
    return f'{budget_s:.3g} s' if budget_s >= 1.0 else f'{1e3 * budget_s:.3g} ms'


def provenance(summary: Row) -> str:
    """Return with what command, where and when, and how completely."""
    machine, missing = summary['machine'], summary['cases_planned'] - summary['cases_done']
    options = ''.join(f' --{name}' for name in ('quick', 'ros') if summary[name])
    return (f'`timebill experiment {summary["experiment"]}{options}`: {machine["info"]["name"]} on '
            f'{machine["info"]["device"]}, {machine["date"]}, commit {machine["commit"]}, '
            f'{summary["queries"]} queries'
            + (f', {missing} of {summary["cases_planned"]} cases not run' if missing else '') + '.')


def budgets(results: Row) -> Iterator[str]:
    """Yield score and completion of every method and budget, per strategy."""
    for strategy, of_strategy in by(results['table'], 'strategy').items():
        at = sorted({row['budget_s'] for row in of_strategy})
        asked = max(row['n'] for row in of_strategy)
        yield _grid(of_strategy, 'budget_s', at,
                    [f'{STRATEGIES[strategy]}, {asked} questions', *map(seconds, at)])
    yield 'Average score (a late answer scores 0) / completed in time + cut short in time.'


def load(results: Row) -> Iterator[str]:
    """Yield completion and score of every method and load."""
    at = sorted({row['load'] for row in results['table']})
    yield _grid(results['table'], 'load', at, ['offered load', *(f'{each:g}' for each in at)])
    yield 'Average score / completed in time + cut short in time.'


def _grid(rows: Sequence[Row], name: str, at: Sequence[float], heads: Sequence[str]) -> str:
    """Return a line per method, a column per value of ``name``, and an empty line."""
    lines = []
    for method, found in by(rows, 'method').items():
        cells = {row[name]: row for row in found}
        lines.append([label(method), *(_scored(cells.get(each)) for each in at)])
    return markdown_table(heads, lines) + '\n'


def _scored(row: Row | None) -> str:
    if row is None:
        return MISSING
    cut = f' + {percent(row["truncated"])}' if row['truncated'] else ''
    return f'{number(row["score"], 3)} / {percent(row["completed"])}{cut}'


def theta(results: Row) -> Iterator[str]:
    """Yield the largest harmless α of every class."""
    yield markdown_table(
        ['class', 'questions', 'score at α = 0', 'largest α that loses ≤ 5 %', 'surely'],
        ([row['group'], row['n'], number(row['score'], 3), _alpha(row['alpha']),
          _alpha(row['alpha_sure'])] for row in results['harmless'])) + '\n'
    yield ('"Surely": by the worse end of the 95 % bootstrap interval of the loss. A dash: nothing '
           'is right even at α = 0.')


def _alpha(alpha: float | None) -> str:
    return MISSING if alpha is None else f'{alpha:g}'


def pessimism(results: Row) -> Iterator[str]:
    """Yield score and completion of every k."""
    yield markdown_table(['k', 'score', '95 %', 'completed', 'mean α', 'questions'], (
        [row['k'], number(row['score'], 3),
         f'{number(row["score_low"], 3)}–{number(row["score_high"], 3)}',
         percent(row['completed']), number(row['alpha'], 3), row['n']]
        for row in results['table'])) + '\n'


def ete_accuracy(results: Row) -> Iterator[str]:
    """Yield the errors of every stage, and how often the worst case held."""
    yield markdown_table(
        ['stage', 'mean absolute error', 'queries'],
        ([stage, percent(row['mape'], 1), row['n']]
         for stage, row in results['errors'].items())) + '\n'
    bound = results['worst_case']
    yield (f'The worst case at k = {bound["k"]:g} held for {percent(bound["held"])} of '
           f'{bound["n"]} queries (aim: 95 %).')


def rlp_accuracy(results: Row) -> Iterator[str]:
    """Yield the errors of the predictor in force."""
    yield markdown_table(
        ['predictor', 'MAE, tokens', 'R²', 'prompts'],
        ([row['predictor'], number(row['mae'], 1), number(row['r2'], 2), row['n']]
         for row in results['table'])) + '\n'


def robot(results: Row) -> Iterator[str]:
    """Yield what the robot did in both loops."""
    yield markdown_table(
        ['a robot asks once a second, budgets of 0.5 to 5 s', 'acts on an answer in time',
         'on the right one', 'answer too late (at most by)', 'median answer after', 'ticks'],
        ([row['method'], percent(row['acted']), percent(row['right']),
          percent(row['late']) + (f' (by {seconds(row["latest_s"])})' if row['late'] else ''),
          seconds(row['median_s']), row['n']]
         for row in results['table'])) + '\n'


def by(rows: Sequence[Row], name: str) -> dict[str, list[Row]]:
    """Return the rows of every value of a field, in the order in which they come."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found


TABLES: dict[str, Callable[[Row], Iterator[str]]] = {
    'budgets': budgets, 'robot': robot, 'theta': theta, 'pessimism': pessimism, 'load': load,
    'ete-accuracy': ete_accuracy, 'rlp-accuracy': rlp_accuracy}
