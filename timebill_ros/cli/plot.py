# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill plot``: a profile, or recorded queries, as PNG and as one self-contained HTML."""

import argparse
from pathlib import Path
import sys

from timebill_ros.experiments.plot_data import NothingToDraw, Profile, read

DPI = 130
_INSTALL = {
    'matplotlib': 'apt install python3-matplotlib, or pip install matplotlib',
    'rosbags': 'pip install rosbags, or record with "timebill record" instead',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument(
        'source',
        type=Path,
        help='a profile (timebill profile says where it lies), a file of JSON lines (timebill '
        'record, timebill ask --json) or a rosbag2 with the topic timebill/timing',
    )
    parser.add_argument(
        '--out',
        type=Path,
        metavar='STEM',
        help='write STEM.png and STEM.html; default: the name of the source, here',
    )


def run(arguments: argparse.Namespace) -> int:
    """Draw; returns the exit status."""
    source: Path = arguments.source
    stem: Path = arguments.out or Path(source.stem)
    try:
        _draw(source, stem)
    except ImportError as error:
        name = (error.name or '').split('.')[0]
        print(f'timebill plot needs {name}: {_INSTALL.get(name, name)}', file=sys.stderr)
        return 1
    except (NothingToDraw, OSError) as error:
        print(f'timebill plot: {error}', file=sys.stderr)
        return 1
    return 0


def _draw(source: Path, stem: Path) -> None:
    found = read(source)
    # Imported here: only this command needs matplotlib.
    from timebill_ros.experiments import plot_page, plots

    if isinstance(found, Profile):
        title, figure = f'Timing profile: {source.name}', plots.profile_figure(found)
        tables = plot_page.profile_tables(found)
    else:
        title, figure = f'Queries: {source.name}', plots.records_figure(found)
        tables = plot_page.record_tables(found)
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, html = Path(f'{stem}.png'), Path(f'{stem}.html')
    figure.savefig(png, dpi=DPI)
    html.write_text(plot_page.page(title, figure, tables), encoding='utf-8')
    print(png, html, sep='\n')
