# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Score and completion over budgets."""

from collections.abc import Iterator, Sequence
from typing import Any

from timebill_ros.experiments.drawings import colour, Drawing, lines, over_budgets, panels
from timebill_ros.experiments.suite.budgets import OURS

Row = dict[str, Any]
_STRATEGIES = {'kill': 'Kill', 'skip-next': 'Skip-Next'}


def draw(results: Row, rows: Sequence[Row]) -> Iterator[Drawing]:
    """Yield one drawing per strategy that was run."""
    for strategy, label in _STRATEGIES.items():
        table = [row for row in results['table'] if row['strategy'] == strategy]
        if table:
            yield _of(strategy, label, table, results)


def _of(strategy: str, label: str, table: Sequence[Row], results: Row) -> Drawing:
    figure, (score, ahead, done) = panels(3)
    lines(score, table, 'budget_s', 'score', bars=True)
    lines(ahead, [row for row in table if row['method'] != OURS], 'budget_s', 'ahead', bars=True)
    lines(done, table, 'budget_s', 'completed')
    own = sorted((row for row in table if row['method'] == OURS), key=lambda row: row['budget_s'])
    in_time, = done.plot(
        [row['budget_s'] for row in own], [row['completed'] + row['truncated'] for row in own],
        '--', color=colour(OURS), label='ours, with those cut short in time')
    done.legend(handles=[in_time], fontsize=7)
    score.set(ylabel='average score (late = 0)')
    ahead.set(ylabel='ours minus the other, same questions')
    done.set(ylabel='completed in time', ylim=(-0.03, 1.03))
    for axes in (score, ahead, done):
        over_budgets(axes, [row['budget_s'] for row in table])
    score.axhline(results['unhurried']['score'], color='#7f7f7f', linestyle=':', linewidth=1)
    ahead.axhline(0.0, color='#222222', linewidth=1)
    score.legend(fontsize=7)
    counts = sorted({row['n'] for row in table})
    per_point = f'{counts[0]}' if counts[0] == counts[-1] else f'{counts[0]} to {counts[-1]}'
    return Drawing(f'budgets-{strategy}', figure, (
        f'{label}: average score over budgets, its difference to ours, and completion rate; '
        f'{per_point} questions per point, bars: 95 % bootstrap interval of the mean. Dotted: '
        f'vanilla without a budget. {_whole(table)}'),
        [each for each in results['losses'] if each.startswith(f'{strategy},')])


def _whole(table: Sequence[Row]) -> str:
    """Say how many of our answers are whole where the plan's worst case fitted, and elsewhere."""
    own = [row for row in table if row['method'] == OURS]
    asked, fitting = sum(row['n'] for row in own), sum(row['fitting'] for row in own)
    if not fitting:
        return ''
    whole = sum(row['fitting'] * row['fitting_completed'] for row in own if row['fitting'])
    cut = sum(row['n'] * row['truncated'] for row in own)
    return (f'Of our {asked} answers the worst case fitted for {fitting}: {whole / fitting:.1%} of '
            f'those are whole; {cut / asked:.0%} of all were cut short in time, which counts as '
            'not completed.')
