# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Quality and seconds over the grid of θ."""

from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib import colormaps

from timebill_ros.experiments.drawings import Drawing, panels

Row = dict[str, Any]
_MARKERS = 'osD^v'


def draw(results: Row, rows: Sequence[Row]) -> Iterator[Drawing]:
    """Yield the grid, and the picks if there are any."""
    grid = results['grid']
    if grid:
        yield _grid(grid)
    if results['harmless']:
        yield _harmless(results['harmless'])
    if results['picks']:
        yield _picks(results['picks'])


def _grid(grid: Sequence[Row]) -> Drawing:
    figure, (score, step) = panels(2)
    for number, tier in enumerate(dict.fromkeys(row['tier'] for row in grid)):
        rows = sorted((row for row in grid if row['tier'] == tier), key=lambda row: row['alpha'])
        marker = _MARKERS[number % len(_MARKERS)]
        at = [row['alpha'] for row in rows]
        score.errorbar(at, [row['score'] for row in rows], fmt=f'{marker}-', capsize=3, yerr=[
            [row['score'] - row['score_low'] for row in rows],
            [row['score_high'] - row['score'] for row in rows]], label=tier)
        step.plot(at, [1e3 * row['step_s'] if row['step_s'] else None for row in rows],
                  f'{marker}-', label=tier)
    score.set(xlabel='eviction ratio α', ylabel='average score, no budget')
    step.set(xlabel='eviction ratio α', ylabel='mean decode step, ms')
    step.set_ylim(0.0, 1.15 * step.get_ylim()[1])
    for axes in (score, step):
        axes.legend(fontsize=7)
        axes.grid(alpha=0.3)
    counts = {row['n'] for row in grid}
    return Drawing('theta', figure, (
        'What precision tier and eviction ratio cost in quality and buy in time, no budget; '
        f'{min(counts)} to {max(counts)} questions per point, bars: 95 % bootstrap interval.'))


def _harmless(classes: Sequence[Row]) -> Drawing:
    """Draw how much of the prompt each class can spare."""
    rows = sorted(classes, key=lambda row: (row['alpha'] is not None, row['alpha'] or 0.0))
    figure, (axes,) = panels(1, height=3.8, width=7.5)
    names = [f'{row["group"]} (n = {row["n"]}, score {row["score"]:.2f})' for row in rows]
    axes.barh(names, [row['alpha'] or 0.0 for row in rows], color='#1f77b4', height=0.6,
              label='by the mean')
    axes.plot([row['alpha_sure'] or 0.0 for row in rows], names, 'D', color='#d62728',
              label='by the worse end of the interval')
    axes.set(xlabel='largest α that loses at most 5 % of the score', xlim=(-0.02, 1.0))
    axes.tick_params(axis='y', labelsize=7)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3, axis='x')
    nothing = [row['group'] for row in rows if row['alpha'] is None]
    return Drawing('theta-harmless', figure, (
        'Per class the largest eviction ratio up to which the best tier loses at most 5 % of its '
        'score at α = 0 (the same questions; 95 % bootstrap interval of the loss), no budget.'
        + (f' Without a right answer at α = 0: {", ".join(nothing)}.' if nothing else '')))


def _picks(picks: Sequence[Row]) -> Drawing:
    figure, all_axes = panels(max(1, len({row['method'] for row in picks})))
    thetas = sorted({theta for row in picks for theta in row['picked']})
    colours = colormaps['tab20'].colors
    for axes, method in zip(all_axes, dict.fromkeys(row['method'] for row in picks)):
        rows = sorted((row for row in picks if row['method'] == method),
                      key=lambda row: float(row['share']))
        bottoms = [0.0] * len(rows)
        labels = [f'{row["budget_s"]:.3g} s' for row in rows]
        for number, theta in enumerate(thetas):
            shares = [row['picked'].get(theta, 0) / row['n'] for row in rows]
            if not any(shares):
                continue
            axes.bar(labels, shares, bottom=bottoms, label=theta,
                     color=colours[number % len(colours)])
            bottoms = [low + share for low, share in zip(bottoms, shares)]
        axes.set(xlabel='budget', ylabel='share of queries', ylim=(0, 1), title=method)
        if any(bottoms):
            axes.legend(fontsize=7)
    return Drawing('theta-picks', figure, (
        'Which θ was in force at the end of each query, over budgets; what is missing to 1 ended '
        f'before its plan. {max(row["n"] for row in picks)} questions per bar.'))
