# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The figures of the experiments, from their summaries and rows; imports matplotlib.

A drawing carries its caption, and in the same place where ours is behind a baseline.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
import importlib
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

Row = dict[str, Any]

_COLOURS = {
    'vanilla': '#7f7f7f', 'fixed-0.25': '#c5b0d5', 'fixed-0.5': '#aa8fc4', 'fixed-0.75': '#8c6bb1',
    'fixed-0.95': '#6e40a0', 'quantised': '#ff7f0e', 'paper': '#1f77b4', 'joint': '#d62728'}
_OTHERS = ('#2ca02c', '#17becf', '#bcbd22', '#8c564b', '#e377c2')
LABELS = {
    'vanilla': 'vanilla', 'quantised': 'quantised alone', 'paper': "TimeBill (paper's policy)",
    'joint': 'ours (joint)', **{f'fixed-{a}': f'fixed α = {a}' for a in ('0.25', '0.5', '0.75',
                                                                         '0.95')}}
_BESIDE = 1.015     # x of a method over that of the one before it
_NEAR, _FAR = (1.0, 2.0, 5.0), 200.0    # ticks of an axis, and from which ratio on decades do


@dataclass
class Drawing:
    """A figure and what it says."""

    name: str                   # of its file
    figure: Figure
    caption: str
    losses: list[str] = field(default_factory=list)     # where ours is behind


def draw(name: str, summary: Row, rows: Sequence[Row]) -> list[Drawing]:
    """Return the drawings of an experiment; none where there is nothing to draw."""
    module = importlib.import_module(f'{__name__}.{name.replace("-", "_")}')
    return list(module.draw(summary['results'], rows))


def panels(columns: int, height: float = 3.8, width: float = 5.2) -> tuple[Figure, list[Axes]]:
    """Return a figure with so many axes side by side, each ``height`` and ``width`` inches."""
    figure = Figure(figsize=(min(14.0, width * columns), height), layout='constrained')
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def colour(method: str, number: int = 0) -> str:
    """Return the colour of a method, the same in every figure."""
    return _COLOURS.get(method, _OTHERS[number % len(_OTHERS)])


def logarithmic(axes: Axes, *names: str) -> None:
    """Make the axes "x", "y" logarithmic, with plain numbers at them."""
    for name in names:
        getattr(axes, f'set_{name}scale')('log')
        axis = getattr(axes, f'{name}axis')
        low, high = getattr(axes, f'get_{name}lim')()
        axis.set_major_locator(LogLocator(subs=_NEAR if high < _FAR * low else (1.0,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
        axis.set_minor_formatter(NullFormatter())


def over_budgets(axes: Axes, budgets: Iterable[float]) -> None:
    """Make x a logarithmic axis of budgets, each with its number: s, or ms if all are short."""
    ticks = sorted(set(budgets))
    short = ticks[-1] < 1.0
    axes.set_xscale('log')
    axes.set_xticks(ticks, [f'{1e3 * each if short else each:.3g}' for each in ticks], fontsize=8)
    axes.minorticks_off()
    axes.set_xlabel(f'budget, {"ms" if short else "s"}')


def lines(axes: Axes, table: Sequence[Row], x: str, y: str, bars: bool = False) -> None:
    """
    Draw ``y`` over ``x`` of every method; ``bars`` adds the interval ``y_low``..``y_high``.

    With bars the methods stand a little beside one another, so that each can be read.
    """
    names = list(dict.fromkeys(row['method'] for row in table))
    for number, name in enumerate(names):
        rows = sorted((row for row in table if row['method'] == name and row[y] is not None),
                      key=lambda row: float(row[x]))
        beside = _BESIDE ** (number - len(names) / 2) if bars else 1.0
        at, values = [row[x] * beside for row in rows], [row[y] for row in rows]
        errors = [[row[y] - row[f'{y}_low'] for row in rows],
                  [row[f'{y}_high'] - row[y] for row in rows]] if bars else None
        own = name == 'joint'
        axes.errorbar(at, values, errors, fmt='o-', markersize=4, color=colour(name, number),
                      linewidth=2.2 if own else 1.2, elinewidth=0.8, zorder=3 if own else 2,
                      label=LABELS.get(name, name))
    axes.grid(alpha=0.3)
