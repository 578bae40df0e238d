# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Markdown tables of the summaries of experiments, for docs/experiments.md and README.md."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

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


def share(value: float | None) -> str:
    """Return a share in per cent; nothing was measured = a dash."""
    return '–' if value is None else f'{value:.0%}'


def provenance(summary: Row) -> str:
    """Return with what command, where and when, and how completely."""
    machine, missing = summary['machine'], summary['cases_planned'] - summary['cases_done']
    options = ''.join(f' --{name}' for name in ('quick', 'ros') if summary[name])
    return (f'`timebill experiment {summary["experiment"]}{options}`: {machine["info"]["name"]} on '
            f'{machine["info"]["device"]}, {machine["date"]}, commit {machine["commit"]}, '
            f'{summary["queries"]} queries'
            + (f', {missing} of {summary["cases_planned"]} cases not run' if missing else '') + '.')


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the lines of a table, and an empty one."""
    yield '| ' + ' | '.join(heads) + ' |'
    yield '|---' * len(heads) + '|'
    for row in rows:
        yield '| ' + ' | '.join(row) + ' |'
    yield ''


def budgets(results: Row) -> Iterator[str]:
    """Yield score and completion of every method and budget, per strategy."""
    for strategy, of_strategy in by(results['table'], 'strategy').items():
        at = sorted({row['budget_s'] for row in of_strategy})
        rows = []
        for method, found in by(of_strategy, 'method').items():
            cells = {row['budget_s']: row for row in found}
            rows.append([label(method), *(_scored(cells.get(budget)) for budget in at)])
        asked = max(row['n'] for row in of_strategy)
        yield from table([f'{STRATEGIES[strategy]}, {asked} questions', *map(seconds, at)], rows)
    yield 'Average score (a late answer scores 0) / completed in time + cut short in time.'


def _scored(row: Row | None) -> str:
    if row is None:
        return '–'
    cut = f' + {row["truncated"]:.0%}' if row['truncated'] else ''
    return f'{row["score"]:.3f} / {row["completed"]:.0%}{cut}'


def theta(results: Row) -> Iterator[str]:
    """Yield the largest harmless α of every class."""
    yield from table(
        ['class', 'questions', 'score at α = 0', 'largest α that loses ≤ 5 %', 'surely'],
        [[row['group'], str(row['n']), f'{row["score"]:.3f}', _alpha(row['alpha']),
          _alpha(row['alpha_sure'])] for row in results['harmless']])
    yield ('"Surely": by the worse end of the 95 % bootstrap interval of the loss. A dash: nothing '
           'is right even at α = 0.')


def _alpha(alpha: float | None) -> str:
    return '–' if alpha is None else f'{alpha:g}'


def pessimism(results: Row) -> Iterator[str]:
    """Yield score and completion of every k."""
    yield from table(['k', 'score', '95 %', 'completed', 'mean α', 'questions'], [
        [str(row['k']), f'{row["score"]:.3f}', f'{row["score_low"]:.3f}–{row["score_high"]:.3f}',
         share(row['completed']), f'{row["alpha"]:.3f}', str(row['n'])]
        for row in results['table']])


def load(results: Row) -> Iterator[str]:
    """Yield completion and score of every method and load."""
    at = sorted({row['load'] for row in results['table']})
    rows = []
    for method, found in by(results['table'], 'method').items():
        cells = {row['load']: row for row in found}
        rows.append([label(method), *(_scored(cells.get(each)) for each in at)])
    yield from table(['offered load', *(f'{each:g}' for each in at)], rows)
    yield 'Average score / completed in time + cut short in time.'


def ete_accuracy(results: Row) -> Iterator[str]:
    """Yield the errors of every stage, and how often the worst case held."""
    yield from table(['stage', 'mean absolute error', 'queries'], [
        [stage, '–' if row['mape'] is None else f'{row["mape"]:.1%}', str(row['n'])]
        for stage, row in results['errors'].items()])
    bound = results['worst_case']
    yield (f'The worst case at k = {bound["k"]:g} held for {share(bound["held"])} of {bound["n"]} '
           'queries (aim: 95 %).')


def rlp_accuracy(results: Row) -> Iterator[str]:
    """Yield the errors of the predictor in force."""
    yield from table(['predictor', 'MAE, tokens', 'R²', 'prompts'], [
        [row['predictor'], f'{row["mae"]:.1f}', f'{row["r2"]:.2f}', str(row['n'])]
        for row in results['table']])


def robot(results: Row) -> Iterator[str]:
    """Yield what the robot did in both loops."""
    yield from table(
        ['a robot asks once a second, budgets of 0.5 to 5 s', 'acts on an answer in time',
         'on the right one', 'answer too late (at most by)', 'median answer after', 'ticks'],
        [[row['method'], share(row['acted']), share(row['right']),
          share(row['late']) + (f' (by {seconds(row["latest_s"])})' if row['late'] else ''),
          seconds(row['median_s']), str(row['n'])]
         for row in results['table']])


def by(rows: Sequence[Row], name: str) -> dict[str, list[Row]]:
    """Return the rows of every value of a field, in the order in which they come."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row[name], []).append(row)
    return found


TABLES: dict[str, Callable[[Row], Iterator[str]]] = {
    'budgets': budgets, 'robot': robot, 'theta': theta, 'pessimism': pessimism, 'load': load,
    'ete-accuracy': ete_accuracy, 'rlp-accuracy': rlp_accuracy}
