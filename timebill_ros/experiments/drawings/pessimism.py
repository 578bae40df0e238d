# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Score and completion over the pessimistic factor."""

from collections.abc import Iterator, Sequence
from typing import Any

from timebill_ros.experiments.drawings import Drawing, panels

Row = dict[str, Any]


def draw(results: Row, rows: Sequence[Row]) -> Iterator[Drawing]:
    """Yield one drawing."""
    table = results['table']
    if not table:
        return
    figure, (score, done) = panels(2)
    fixed = [row for row in table if row['k'] != 'learned']
    at = [float(row['k']) for row in fixed]
    score.errorbar(at, [row['score'] for row in fixed], fmt='o-', color='#1f77b4', capsize=3, yerr=[
        [row['score'] - row['score_low'] for row in fixed],
        [row['score_high'] - row['score'] for row in fixed]], label='fixed k')
    done.plot(at, [row['completed'] for row in fixed], 'o-', color='#1f77b4', label='completed')
    done.plot(at, [row['alpha'] for row in fixed], 's--', color='#7f7f7f', label='mean α')
    for row in table:
        if row['k'] == 'learned':
            score.axhline(row['score'], color='#d62728', label='learned k')
            done.axhline(row['completed'], color='#d62728', label='completed, learned k')
    score.set(xlabel='pessimistic factor k', ylabel='average score (late = 0)')
    done.set(xlabel='pessimistic factor k', ylabel='share', ylim=(-0.03, 1.03))
    for axes in (score, done):
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    learned = next((row for row in table if row['k'] == 'learned'), None)
    losses = [] if learned is None else [
        f'learned k: score {learned["score"]:.3f}, k = {row["k"]}: {row["score"]:.3f}'
        for row in fixed if row['score'] > learned['score']]
    yield Drawing('pessimism', figure, (
        f'The paper\'s policy at a budget of {table[0]["budget_s"]:.3g} s over k; {table[0]["n"]} '
        'questions per point, bars: 95 % bootstrap interval.'), losses)
