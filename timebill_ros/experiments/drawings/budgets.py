# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Score and completion over budgets."""

from collections.abc import Iterator, Sequence
from typing import Any

from timebill_ros.experiments.drawings import Drawing, lines, logarithmic, panels

Row = dict[str, Any]
_STRATEGIES = {'kill': 'Kill', 'skip-next': 'Skip-Next'}


def draw(results: Row, rows: Sequence[Row]) -> Iterator[Drawing]:
    """Yield one drawing per strategy that was run."""
    for strategy, label in _STRATEGIES.items():
        table = [row for row in results['table'] if row['strategy'] == strategy]
        if not table:
            continue
        figure, (score, done) = panels(2)
        lines(score, table, 'budget_s', 'score', bars=True)
        lines(done, table, 'budget_s', 'completed')
        score.set(xlabel='budget, s', ylabel='average score (late = 0)')
        done.set(xlabel='budget, s', ylabel='completed in time', ylim=(-0.03, 1.03))
        for axes in (score, done):
            logarithmic(axes, 'x')
        score.axhline(results['unhurried']['score'], color='#7f7f7f', linestyle=':', linewidth=1)
        score.legend(fontsize=7)
        counts = sorted({row['n'] for row in table})
        per_point = f'{counts[0]}' if counts[0] == counts[-1] else f'{counts[0]} to {counts[-1]}'
        caption = (
            f'{label}: average score and completion rate over budgets; {per_point} questions per '
            'point, shaded: 95 % bootstrap interval of the mean. Dotted: vanilla without a budget.')
        losses = [each for each in results['losses'] if each.startswith(f'{strategy},')]
        yield Drawing(f'budgets-{strategy}', figure, caption, losses)
