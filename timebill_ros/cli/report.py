# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill report``: one HTML page, and figures, from the experiments that were run."""

import argparse
import json
from pathlib import Path
import sys

from timebill_ros.cli.experiment import DEFAULT_OUT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument('sources', type=Path, nargs='*', default=[DEFAULT_OUT], metavar='DIR',
                        help=f'folders written by "timebill experiment" (default: {DEFAULT_OUT})')
    parser.add_argument('--out', type=Path, default=Path('timebill-report.html'), metavar='FILE')
    parser.add_argument('--predictors', type=Path, metavar='FILE',
                        help='output of "timebill predictor tables", to show beside them')
    parser.add_argument('--figures', type=Path, metavar='DIR', help='write the figures as PNG too')


def run(arguments: argparse.Namespace) -> int:
    """Write the page; returns the exit status."""
    try:
        from timebill_ros.experiments import report
    except ImportError as error:
        print(f'timebill report needs {error.name}: apt install python3-matplotlib, or pip install '
              'matplotlib', file=sys.stderr)
        return 1
    folders = report.experiments_in(arguments.sources)
    if not folders:
        places = ', '.join(map(str, arguments.sources))
        print(f'timebill report: no experiment was run into {places}; run "timebill experiment"',
              file=sys.stderr)
        return 1
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    predictors = None
    if arguments.predictors is not None:
        predictors = json.loads(arguments.predictors.read_text(encoding='utf-8'))
    arguments.out.write_text(report.page(folders, predictors), encoding='utf-8')
    print(arguments.out)
    if arguments.figures is not None:
        arguments.figures.mkdir(parents=True, exist_ok=True)
        for folder in folders:
            for drawing in report.drawings_of(folder):
                path = arguments.figures / f'{drawing.name}.png'
                drawing.figure.savefig(path, dpi=report.DPI)
                print(path)
    return 0
