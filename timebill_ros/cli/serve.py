# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill serve``: both nodes in the foreground, the query server in this very process."""

import argparse

from timebill_ros.cli.arguments import add_namespace
from timebill_ros.cli.calibration_process import CalibrationProcess
from timebill_ros.nodes import query_server


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument('--model', help='model directory, GGUF file, hub name, or "embedded"')
    parser.add_argument('--device', help='auto, cpu, cuda or cuda:N')
    add_namespace(parser, 'node')
    parser.add_argument('--params-file', help='YAML file of parameters')
    parser.add_argument(
        '--param',
        action='append',
        default=[],
        metavar='NAME:=VALUE',
        help='set a parameter; may be given several times',
    )
    parser.add_argument(
        '--no-calibration',
        action='store_true',
        help='do not start the node timebill_calibration: plan with the stored profile for ever',
    )
    parser.add_argument('--log-level', help='debug, info, warn, error or fatal')


def run(arguments: argparse.Namespace) -> int:
    """Run until SIGINT or SIGTERM."""
    given = ros_arguments(arguments)
    if arguments.no_calibration:
        return query_server.main(given)
    with CalibrationProcess(given):
        return query_server.main(given)


def ros_arguments(arguments: argparse.Namespace) -> list[str]:
    """Return the ROS command line that says the same."""
    given = ['--ros-args']
    if arguments.params_file:
        given += ['--params-file', arguments.params_file]
    if arguments.namespace:
        given += ['-r', '__ns:=/' + arguments.namespace.strip('/')]
    if arguments.log_level:
        given += ['--log-level', arguments.log_level]
    for name in ('model', 'device'):
        if getattr(arguments, name) is not None:
            given += ['-p', f'{name}:="{getattr(arguments, name)}"']
    for setting in arguments.param:
        given += ['-p', setting]
    return given
