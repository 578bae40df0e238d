# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
One HTML page from the experiments that were run: figures, numbers, what is missing, what is lost.

The page needs nothing else: drawings are inline SVG. It is made from summaries and rows alone, so
it can be made again from committed ones.
"""

from collections.abc import Iterable, Sequence
from html import escape
import io
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from timebill_ros.experiments.drawings import draw, Drawing
from timebill_ros.experiments.drawings.predictors import draw_predictors
from timebill_ros.experiments.recorder import read_rows
from timebill_ros.experiments.run import read_summary
from timebill_ros.experiments.suite import EXPERIMENTS

Row = dict[str, Any]

DPI = 130
_STYLE = (
    'body{font-family:sans-serif;margin:2em auto;max-width:75em;padding:0 1em}'
    'svg{max-width:100%;height:auto}figure{margin:1em 0}'
    'figcaption,.lost,.left{font-size:1em;margin:.4em 0}'
    '.lost{border-left:.3em solid #d62728;padding-left:.6em}'
    'table{border-collapse:collapse;margin:1em 0;font-size:.85em}'
    'td,th{border:1px solid #ccc;padding:.15em .5em;text-align:right}'
    'th:first-child,td:first-child{text-align:left}')


def experiments_in(folders: Iterable[Path]) -> list[Path]:
    """Return the folders of experiments in these folders, in the order of the suite."""
    found = [path for folder in folders for name in EXPERIMENTS
             if (path := folder / name).is_dir() and (path / 'summary.json').is_file()]
    return found


def drawings_of(folder: Path) -> list[Drawing]:
    """Return the drawings of an experiment; captions end with device and number of queries."""
    summary, (header, rows) = read_summary(folder), read_rows(folder)
    found = draw(header['experiment'], summary, rows)
    for drawing in found:
        drawing.caption += ' ' + provenance(summary)
        drawing.name += '-ros' if summary['ros'] else ''
    return found


def provenance(summary: Row) -> str:
    """Return on what, when and how completely an experiment was run."""
    machine, through = summary['machine'], ', through the ROS action' if summary['ros'] else ''
    info = machine.get('info', {})
    missing = summary['cases_planned'] - summary['cases_done']
    return (
        f'{info.get("name", "?")} ({info.get("dtype", "?")}; tiers {", ".join(info["tiers"])}) on '
        f'{info.get("device", "?")}, {machine.get("date", "?")}, commit '
        f'{machine.get("commit") or "?"}, seed {summary["seed"]}, {summary["queries"]} queries in '
        f'all{through}' + (', --quick' if summary['quick'] else '')
        + (f'; {missing} of {summary["cases_planned"]} cases not run (time)' if missing else '')
        + '.') if info else 'No engine was started.'


def page(folders: Sequence[Path], predictors: Row | None = None) -> str:
    """
    Return the page about the experiments in these folders.

    ``predictors``: what ``timebill predictor tables`` wrote.
    """
    parts = [_experiment(folder) for folder in folders]
    if predictors is not None:
        parts.append(
            '<h2>Length predictors compared</h2><p>Made by <code>timebill predictor tables</code>, '
            f'{escape(predictors["date"])}.</p>{_figure(draw_predictors(predictors))}'
            + _table('comparison', predictors['comparison']))
    absent = [name for name in EXPERIMENTS if name not in {folder.name for folder in folders}]
    left = ''.join(f'<li>{escape(name)}: {escape(EXPERIMENTS[name])}</li>' for name in absent)
    not_run = f'<h2>Not run</h2><ul>{left}</ul>' if absent else ''
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>timebill_ros: what '
        f'was measured</title><style>{_STYLE}</style></head><body><h1>timebill_ros: what was '
        'measured</h1><p>Made by <code>timebill report</code> from the rows of <code>timebill '
        'experiment</code>. Red bars mark where a baseline does better than ours, or an aim was '
        f'missed.</p>\n{"".join(parts)}{not_run}</body></html>\n')


def _experiment(folder: Path) -> str:
    summary = read_summary(folder)
    name = summary['experiment']
    command = f'timebill experiment {name}' + ''.join(
        f' --{option}' for option in ('quick', 'ros') if summary[option])
    versions = summary['machine'].get('versions', {})
    skipped = ''.join(
        f'<p class="left">Left out: {escape(each["what"])}: {escape(each["why"])}</p>'
        for each in summary['skipped'])
    skipped += ''.join(f'<p class="lost">Not measured as claimed: {escape(each)}</p>'
                       for each in summary.get('not_as_claimed', []))
    drawings = ''.join(_figure(drawing) for drawing in drawings_of(folder))
    return (
        f'<h2>{escape(summary["title"])}</h2><p><code>{escape(command)}</code> ({escape(name)}: '
        f'{escape(EXPERIMENTS[name])}). {escape(provenance(summary))} '
        f'{escape(", ".join(f"{key} {value}" for key, value in versions.items()))}.</p>'
        f'{drawings}{skipped}{tables(summary["results"])}')


def _figure(drawing: Drawing) -> str:
    lost = ''.join(f'<p class="lost">{escape(each)}</p>' for each in drawing.losses)
    return (f'<figure>{svg(drawing.figure)}<figcaption>{escape(drawing.caption)}</figcaption>'
            f'</figure>{lost}\n')


def svg(figure: Figure) -> str:
    """Return a figure as an SVG element with real text."""
    out = io.StringIO()
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': 'timebill'}):
        figure.savefig(out, format='svg', metadata={'Date': None})
    drawing = out.getvalue()
    return drawing[drawing.index('<svg'):]      # without the XML prologue


def tables(results: Row) -> str:
    """Return the lists of objects among the results as tables."""
    return ''.join(_table(name, rows) for name, rows in results.items()
                   if isinstance(rows, list) and rows and isinstance(rows[0], dict))


def _table(name: str, rows: Sequence[Row]) -> str:
    heads = list(dict.fromkeys(key for row in rows for key in row))
    body = ''.join('<tr>' + ''.join(f'<td>{escape(_cell(row.get(head)))}</td>' for head in heads)
                   + '</tr>' for row in rows)
    titles = ''.join(f'<th>{escape(head)}</th>' for head in heads)
    return (f'<details><summary>{escape(name)}</summary><table><tr>{titles}</tr>{body}</table>'
            '</details>')


def _cell(value: Any) -> str:
    if value is None:
        return '–'
    if isinstance(value, float):
        return f'{value:.4g}'
    if isinstance(value, dict):
        return ', '.join(f'{key}: {_cell(each)}' for key, each in value.items())
    return str(value)
