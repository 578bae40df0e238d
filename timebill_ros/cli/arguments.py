# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Arguments that several sub-commands take."""

import argparse
from collections.abc import Callable
import re

_NAMESPACE = re.compile(r'/?|/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*/?', re.ASCII)


def add_namespace(parser: argparse.ArgumentParser, whose: str) -> None:
    """Add ``--namespace``."""
    parser.add_argument(
        '--namespace', type=_namespace, default='', help=f'ROS namespace of the {whose}'
    )


def count(least: int, most: int) -> Callable[[str], int]:
    """Return an argument type: a whole number from ``least`` to ``most``, or 0 = chosen."""

    def parse(text: str) -> int:
        value = int(text)
        if value != 0 and not least <= value <= most:
            raise argparse.ArgumentTypeError(f'{value} is not within {least}..{most}, nor 0')
        return value

    parse.__name__ = 'whole number'     # argparse names it where it is none
    return parse


def _namespace(text: str) -> str:
    if not _NAMESPACE.fullmatch(text):
        raise argparse.ArgumentTypeError(f'{text!r} is not a ROS namespace, as /robot_1/arm is')
    return text.rstrip('/')
