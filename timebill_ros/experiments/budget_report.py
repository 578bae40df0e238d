# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The Markdown tables of shipped quality profiles and of ``timebill bench pessimism``."""

from collections.abc import Iterator, Sequence
from typing import Any

from timebill_ros.markdown import markdown_table, percent

Row = dict[str, Any]
_FIXED_K = 5.0      # the paper's


def quality(stored: Row) -> str:
    """Return the loss of every tier and eviction ratio, and the agreement in brackets."""
    profile, about = stored['quality'], stored['about']
    cells = {(each['length'], each['tier'], each['alpha']): each for each in about['cells']}

    def cell(length: int, tier: str, alpha: float, loss: float) -> str:
        agreement = cells[length, tier, alpha]['agreement']
        return f'{percent(loss, 1)} ({percent(agreement)})'

    rows = [(f'{length:,}', tier, *(
        cell(length, tier, alpha, loss)
        for alpha, loss in zip(profile['alphas'], profile['losses'][tier][index])))
        for index, length in enumerate(profile['lengths']) for tier in profile['losses']]
    return (f'{about["date"]}, {profile["model"]} on {about["device"]}, {about["prompts"]} '
            f'prompts, {about["seconds"]:.0f} s.\n\n') + markdown_table(
        ('prompt, tokens', 'tier', *(f'α = {alpha:g}' for alpha in profile['alphas'])),
        rows) + '\n'


def pessimism(report: Row) -> str:
    """Return the shares beyond N_W and the misses, of the learned factor and of k = 5."""
    replays = sorted(report['replays'], key=lambda each: (each['slower'], each['lengths']))
    return f'`{report["command"]}`\n\n' + markdown_table(
        ('lengths', 'queries', 'steps after the change', 'δ', 'N > N_W, learned',
         'before, after the change', 'N > N_W, k = 5', 'missed after the change, learned', 'k = 5'),
        (line for replay in replays for line in _lines(replay))) + '\n'


def _lines(replay: Row) -> Iterator[Sequence[str]]:
    fixed = {row['target']: row for row in replay['rows']
             if row['factor'] == 'fixed' and row['k_start'] == _FIXED_K}
    for row in replay['rows']:
        if row['factor'] == 'learned':
            other = fixed[row['target']]
            yield (
                replay['lengths'].removesuffix('.jsonl.gz'), f'{replay["queries"]:,}',
                f'× {replay["slower"]:g}', percent(row['target']), percent(row['all']['beyond'], 1),
                f'{percent(row["before"]["beyond"], 1)}, {percent(row["after"]["beyond"], 1)}',
                percent(other['all']['beyond'], 1), percent(row['after']['missed'], 1),
                percent(other['after']['missed'], 1))
