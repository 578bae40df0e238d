# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the robot did at its ticks."""

from collections.abc import Iterator, Sequence
from typing import Any

from timebill_ros.experiments.drawings import Drawing, panels

Row = dict[str, Any]
_SHARES = (('acted', 'acted on an answer, in time'), ('right', 'and it was the right one'),
           ('late', 'answer came too late'))


def draw(results: Row, rows: Sequence[Row]) -> Iterator[Drawing]:
    """Yield one drawing."""
    table = results['table']
    if not table:
        return
    figure, (axes,) = panels(1, height=3.6, width=7.0)
    width = 0.8 / len(table)
    for number, row in enumerate(table):
        at = [place + number * width for place in range(len(_SHARES))]
        axes.bar(at, [row[name] for name, _ in _SHARES], width, label=row['method'])
        axes.errorbar(at[:1], row['acted'], [[row['acted'] - row['acted_low']],
                                             [row['acted_high'] - row['acted']]],
                      color='#222222', capsize=3)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(_SHARES))],
                    [label for _, label in _SHARES], fontsize=8)
    axes.set(ylabel='share of ticks', ylim=(0, 1.03))
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3, axis='y')
    plain = next((row for row in table if row['method'].startswith('plain')), None)
    losses = [] if plain is None else [
        f'{label}: {plain["method"]} {plain[name]:.1%}, {row["method"]} {row[name]:.1%}'
        for row in table if row is not plain for name, label in _SHARES
        if (plain[name] < row[name] if name == 'late' else plain[name] > row[name])]
    times = '; '.join(f'{row["method"]}: median {row["median_s"]:.3g} s after it was asked, latest '
                      f'{row["latest_s"]:.2f} s after its deadline' for row in table)
    yield Drawing('robot', figure, (
        f'{table[0]["n"]} ticks at 1 Hz with budgets from 0.5 to 5 s; at a miss the robot takes '
        f'its default action; bar: 95 % bootstrap interval. Answers of {times}.'), losses)
