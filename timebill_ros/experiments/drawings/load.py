# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Deadlines met over offered load."""

from collections.abc import Iterator, Sequence
from typing import Any

from timebill_ros.experiments.drawings import Drawing, LABELS, lines, panels

Row = dict[str, Any]


def draw(results: Row, rows: Sequence[Row]) -> Iterator[Drawing]:
    """Yield one drawing."""
    table = results['table']
    if not table:
        return
    figure, (done, score) = panels(2)
    lines(done, table, 'load', 'completed')
    lines(score, table, 'load', 'score', bars=True)
    done.set(xlabel='offered load (1 = one engine busy with one query at a time)',
             ylabel='completed in time', ylim=(-0.03, 1.03))
    score.set(xlabel='offered load', ylabel='average score (late = 0)')
    done.legend(fontsize=7)
    ours = {row['load']: row for row in table if row['method'] == 'joint'}
    losses = [
        f'load {row["load"]:g}: {LABELS.get(row["method"], row["method"])} completes '
        f'{row["completed"]:.1%}, ours {ours[row["load"]]["completed"]:.1%}' for row in table
        if row['load'] in ours and row['completed'] > ours[row['load']]['completed']]
    yield Drawing('load', figure, (
        f'Poisson arrivals, {table[0]["n"]} questions per point, each with a budget of '
        f'{table[0]["budget_s"]:.3g} s ({results["alone_s"]:.3g} s is the mean of one that runs '
        'alone); several are answered at once where the engine shares its steps.'), losses)
