# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Predicted against measured times."""

from collections.abc import Iterator, Sequence
from typing import Any

from timebill_ros.experiments.drawings import Drawing, logarithmic, panels
from timebill_ros.experiments.suite.ete_accuracy import pairs, worst_cases

Row = dict[str, Any]


def draw(results: Row, rows: Sequence[Row]) -> Iterator[Drawing]:
    """Yield one drawing: each stage, and the worst case."""
    figure, all_axes = panels(3)
    for axes, stage in zip(all_axes, ('prefill', 'decode')):
        _scatter(axes, pairs(rows, stage), '#1f77b4')
        error = results['errors'][stage]
        shown = '–' if error['mape'] is None else f'{error["mape"]:.1%}'
        axes.set(xlabel='predicted, s', ylabel='measured, s',
                 title=f'{stage}: MAPE {shown} of {error["n"]}')
    _scatter(all_axes[2], worst_cases(rows), '#d62728')
    bound = results['worst_case']
    held = '–' if bound['held'] is None else f'{bound["held"]:.1%}'
    all_axes[2].set(xlabel='predicted worst case, s', ylabel='actual, s',
                    title=f'actual ≤ worst case at k = {bound["k"]:g}: {held} of {bound["n"]}')
    whole = results['errors']['total']
    losses = [] if bound['held'] is None or bound['held'] >= 0.95 else [
        f'the worst case held for {bound["held"]:.1%}, below the 95 % aimed at']
    shown = '–' if whole['mape'] is None else f'{whole["mape"]:.1%}'
    yield Drawing('ete-accuracy', figure, (
        'Every dot is a query of the engine. Prefill and decoding as the laws predict them '
        '(decoding at the length that came) against what was measured; prefill, eviction and '
        f'decoding together: MAPE {shown} of {whole["n"]}. Right: the worst case that the plan was '
        'made with, against the end.'), losses)


def _scatter(axes: Any, found: Sequence[tuple[float, float]], colour: str) -> None:
    if found:
        predicted, measured = zip(*found)
        low, high = 0.9 * min(*predicted, *measured), 1.1 * max(*predicted, *measured)
        axes.plot([low, high], [low, high], color='#222222', linewidth=1)
        axes.plot(predicted, measured, '.', color=colour, alpha=0.6)
        logarithmic(axes, 'x', 'y')
    axes.grid(alpha=0.3)
