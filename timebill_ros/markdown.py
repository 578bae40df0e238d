# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables in Markdown, as docs, README and reports show them; needs no more than Python."""

from collections.abc import Iterable, Sequence
from math import isfinite

MISSING = '–'       # nothing was measured


def markdown_table(heads: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return the lines of a table, without a newline at the end; a cell of None stays empty."""
    return '\n'.join([_line(heads), '|---' * len(heads) + '|', *map(_line, rows)])


def percent(share: float | None, digits: int = 0) -> str:
    """Return a share of 1 in per cent; a dash for None and for NaN."""
    return MISSING if share is None or not isfinite(share) else f'{100.0 * share:.{digits}f} %'


def number(value: float | None, digits: int) -> str:
    """Return a number with so many digits after the point; a dash for None and for NaN."""
    return MISSING if value is None or not isfinite(value) else f'{value:.{digits}f}'


def _line(cells: Sequence[object]) -> str:
    return '| ' + ' | '.join('' if cell is None else str(cell) for cell in cells) + ' |'
