# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill setup-engine``: make the virtual environment that the engine runs in."""

import argparse
from pathlib import Path
import sys

from timebill_ros.executor.engine_command import engine_environment_dir
from timebill_ros.setup_engine import setup_engine, SetupError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.epilog = (
        'Which build of torch comes (CPU, CUDA) is up to pip: set PIP_EXTRA_INDEX_URL, or put the '
        'wheel of your choice into --wheels. Exit status: 0 the engine can start, 1 it cannot.'
    )
    parser.add_argument(
        '--wheels',
        type=Path,
        metavar='DIR',
        help='install from this folder of wheels, without network',
    )
    parser.add_argument(
        '--dir',
        type=Path,
        default=engine_environment_dir(),
        metavar='DIR',
        help='where to (default: %(default)s, where the node finds it by itself)',
    )
    parser.add_argument(
        '--python',
        default=sys.executable,
        metavar='PYTHON',
        help='the Python that it is made from (default: %(default)s)',
    )


def run(arguments: argparse.Namespace) -> int:
    """Make it, and say how the node finds it."""
    print(
        f'Making the environment of the engine in {arguments.dir} (minutes: torch is large)',
        flush=True,
    )
    try:
        python = setup_engine(arguments.dir, arguments.python, arguments.wheels)
    except SetupError as error:
        print(f'timebill: {error}', file=sys.stderr)
        return 1
    print(f'The engine can start in {python}')
    if arguments.dir != engine_environment_dir():
        print(f'Tell the node: export TIMEBILL_ENGINE_PYTHON={python}')
    return 0
