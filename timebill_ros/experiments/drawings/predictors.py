# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Length predictors beside the published ones (the paper's Table 1)."""

from typing import Any

from timebill_ros.experiments.drawings import Drawing, panels

Row = dict[str, Any]
IN_FORCE = 'probe'
CEILING = 'the target itself'
OWN = (IN_FORCE, 'slm')
_AXES = {'mae': 'mean absolute error, tokens', 'r2': 'R²', 'spearman': 'rank correlation'}


def draw_predictors(tables: Row) -> Drawing:
    """Return the drawing of the table ``comparison`` of ``timebill predictor tables``."""
    rows = tables['comparison']
    figure, all_axes = panels(len(_AXES))
    names = [row['predictor'] for row in rows]
    for axes, (value, label) in zip(all_axes, _AXES.items()):
        axes.barh(names, [row[value] for row in rows], color=[_colour(name) for name in names])
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.grid(alpha=0.3, axis='x')
        axes.tick_params(axis='y', labelsize=7)
    for axes in all_axes[1:]:
        axes.set_yticklabels([])
    counts = sorted({row['n'] for row in rows})
    return Drawing('predictors', figure, (
        f'Predicted against real lengths of {counts[-1]} held-out prompts (target '
        f'{tables["target"]}, {tables["date"]}). Red: ours; grey: the target run again on '
        f'{counts[0]} of the prompts, which no predictor can be expected to beat.'), _losses(rows))


def _colour(name: str) -> str:
    if name.startswith(CEILING):
        return '#c7c7c7'
    return '#d62728' if name.split(',')[0] in OWN else '#1f77b4'


def _losses(rows: list[Row]) -> list[str]:
    """Say which published predictor is better than the one in force."""
    own = next((row for row in rows if row['predictor'] == IN_FORCE), None)
    return [] if own is None else [
        f'MAE: {row["predictor"]} {row["mae"]:.1f}, {IN_FORCE} {own["mae"]:.1f}' for row in rows
        if row['mae'] < own['mae'] and not row['predictor'].startswith(CEILING)]
