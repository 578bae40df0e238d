# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""One HTML page that needs nothing else: the figure as SVG, and the numbers behind it."""

from collections import Counter
from collections.abc import Sequence
from html import escape
import io
from math import isfinite

from matplotlib.figure import Figure

from timebill_ros.experiments.plot_data import Profile, Record
from timebill_ros.experiments.plots import mape, pairs_of

_STYLE = ('body{font-family:sans-serif;margin:2em;max-width:90em}svg{width:100%;height:auto}'
          'table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.2em '
          '.6em;text-align:right}th:first-child,td:first-child{text-align:left}')

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def page(title: str, figure: Figure, tables: Sequence[Table]) -> str:
    """Return the page."""
    svg = io.StringIO()
    figure.savefig(svg, format='svg')
    drawing = svg.getvalue()
    drawing = drawing[drawing.index('<svg'):]       # without the XML prologue
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<title>{escape(title)}</title><style>{_STYLE}</style></head><body>'
            f'<h1>{escape(title)}</h1>\n{drawing}\n'
            + '\n'.join(_table(heads, rows) for heads, rows in tables) + '</body></html>\n')


def profile_tables(profile: Profile) -> list[Table]:
    """Return the laws as numbers."""
    heads = ('law', 'form', 'coefficients', 'knots', 'worst / law', 'unseen', 'samples')
    rows = [(law.title, law.form, ', '.join(f'{value:.4g}' for value in law.coefficients),
             ', '.join(f'{knot:g}' for knot in law.knots), f'{law.worst_ratio:.3f}',
             f'{law.mape:.2%}' if isfinite(law.mape) else '–', str(law.samples))
            for law in profile.coefficients.laws]
    return [(heads, rows)]


def record_tables(records: Sequence[Record]) -> list[Table]:
    """Return the outcomes, the errors of each stage, and every query."""
    outcomes = Counter(each.outcome for each in records)
    errors = []
    for stage in ('prefill', 'decode', 'prefill + decode'):
        pairs = pairs_of(records, stage)
        if pairs:
            errors.append((stage, str(len(pairs)), f'{mape(pairs):.2%}'))
    heads = ('query', 'outcome', 'budget, s', 'prompt', 'response', 'α', 'slack, s',
             'coefficients')
    rows = [(str(number), each.outcome, f'{each.timing.time_allowance:.2f}',
             str(each.timing.n_prompt), str(each.timing.n_generated), f'{each.timing.alpha:.2f}',
             f'{each.timing.slack:.3f}', each.timing.coefficients_source)
            for number, each in enumerate(records, 1)]
    return [(('outcome', 'queries'), [(name, str(n)) for name, n in outcomes.most_common()]),
            (('stage', 'queries', 'mean error'), errors), (heads, rows)]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = ''.join('<tr>' + ''.join(f'<td>{escape(cell)}</td>' for cell in row) + '</tr>'
                   for row in rows)
    return ('<table><tr>' + ''.join(f'<th>{escape(head)}</th>' for head in heads)
            + f'</tr>{body}</table>')
