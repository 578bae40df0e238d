# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The tables of ``timebill predictor tables`` as Markdown, beside its JSON and in the docs."""

from typing import Any, Sequence

from timebill_ros.markdown import markdown_table, number, percent

# What a table shows, in order: fields of its rows.
_COLUMNS: dict[str, Sequence[str]] = {
    'comparison': ('predictor', 'n', 'mae', 'rmse', 'r2', 'spearman', 'pit_below_0.95'),
    'sources': ('predictor', 'source', 'pit_below_0.95'),
    'bucket widths': ('B', 'mae', 'mae_upper_edge', 'r2', 'spearman', 'pit_below_0.95'),
    'layers': ('layer', 'mae', 'rmse', 'r2', 'spearman'),
    'training prompts': (
        'prompts', 'variations', 'mae', 'rmse', 'r2', 'spearman', 'pit_below_0.95'),
    'shortened': ('predictor', 'N_p', 'mae', 'rmse', 'r2', 'spearman'),
    'refinement': ('generated', 'n', 'mae_from_prompt', 'mae', 'rmse_from_prompt', 'rmse', 'r2'),
    'leave one out': (
        'source', 'trained on', 'rows', 'mae', 'coverage 0.95', 'beyond_n_hat', 'pit_below_0.95'),
    'real lengths': ('target', 'features', 'examples', 'spearman', 'r2_log', 'mae'),
}
# What stands above a field that does not speak for itself.
_HEADS = {
    'n': 'prompts', 'mae': 'MAE', 'rmse': 'RMSE', 'r2': 'R²', 'spearman': 'Spearman',
    'pit_below_0.95': 'PIT < 0.95', 'mae_upper_edge': 'MAE of N̂, the upper edge',
    'generated': 'tokens generated', 'mae_from_prompt': 'MAE from the prompt',
    'rmse_from_prompt': 'RMSE from the prompt', 'rows': 'prompts',
    'coverage 0.95': '95 % quantile holds', 'beyond_n_hat': 'N > N̂', 'r2_log': 'R² of log length'}
_DIGITS = {'mae': 1, 'rmse': 1}     # by the field's first word; others have three


def markdown(made: dict[str, Any]) -> str:
    """Return all tables that were made, each with a heading."""
    return '\n'.join(
        f'### {name}\n\n{table(made, name)}' for name in _COLUMNS if made.get(name))


def table(made: dict[str, Any], name: str) -> str:
    """Return one of the tables."""
    columns = _COLUMNS[name]
    return markdown_table(
        [_HEADS.get(column, column) for column in columns],
        ([_cell(row, column) for column in columns] for row in made[name])) + '\n'


def _cell(row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if column.startswith('coverage '):
        value = row.get('coverage', {}).get(column.split()[1])
    if value is None:
        return ''
    if not isinstance(value, float):
        return f'{value:,}' if isinstance(value, int) else str(value)
    if column.startswith(('pit', 'coverage', 'beyond')):
        return percent(value, 1)
    return number(value, _DIGITS.get(column.split('_')[0], 3))
