# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Predicted lengths against the target's."""

from collections.abc import Iterator, Sequence
from typing import Any

from timebill_ros.experiments.drawings import Drawing, panels

Row = dict[str, Any]


def draw(results: Row, rows: Sequence[Row]) -> Iterator[Drawing]:
    """Yield one drawing where a predictor was in force."""
    answered = [row['timing'] for row in rows
                if row.get('kind') == 'length' and row['timing']['n_predicted']]
    if not answered:
        return
    figure, (axes,) = panels(1, height=4.4)
    axes.plot([each['n_predicted'] for each in answered],
              [each['n_generated'] for each in answered], '.', color='#1f77b4', alpha=0.6)
    longest = max(max(each['n_predicted'], each['n_generated']) for each in answered)
    axes.plot([0, longest], [0, longest], color='#222222', linewidth=1)
    axes.set(xlabel='predicted length, tokens', ylabel='real length, tokens')
    axes.grid(alpha=0.3)
    own = results['table'][-1]
    other = results['table'][0]
    losses = [f'{name}: {own["predictor"]} {own[name]:.1f}, the median {other[name]:.1f}'
              for name in ('mae', 'rmse') if own[name] > other[name]]
    yield Drawing('rlp-accuracy', figure, (
        f'{results["n"]} held-out prompts answered by the target, {results["at_cap"]:.0%} up to '
        f'the cap. Predictor in force ({own["predictor"]}): MAE {own["mae"]:.1f} tokens, R² '
        f'{own["r2"]:.2f}; the median of these lengths: MAE {other["mae"]:.1f}.'), losses)
