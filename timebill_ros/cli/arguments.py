# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Arguments that several sub-commands take."""

import argparse
import re

_NAMESPACE = re.compile(r'/?|/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*/?', re.ASCII)


def add_namespace(parser: argparse.ArgumentParser, whose: str) -> None:
    """Add ``--namespace``."""
    parser.add_argument(
        '--namespace', type=_namespace, default='', help=f'ROS namespace of the {whose}'
    )


def _namespace(text: str) -> str:
    if not _NAMESPACE.fullmatch(text):
        raise argparse.ArgumentTypeError(f'{text!r} is not a ROS namespace, as /robot_1/arm is')
    return text.rstrip('/')
