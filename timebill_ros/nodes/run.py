# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A node as a process: from the command line to the exit status."""

from collections.abc import Callable
import sys
from typing import Protocol, TypeVar

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.signals import SignalHandlerOptions

from timebill_ros.nodes.signals import StopSignals

EXIT_BAD_CONFIGURATION = 2


class _Stoppable(Protocol):
    def ask_to_stop(self) -> None: ...

    def close(self) -> None: ...


NodeT = TypeVar('NodeT', bound=_Stoppable)


def run_node(
    args: list[str] | None,
    make: Callable[[rclpy.Context], NodeT],
    serve: Callable[[NodeT, SingleThreadedExecutor], None],
) -> int:
    """
    Make a node and serve it; returns the exit status once ``serve`` does.

    SIGINT and SIGTERM call the node's ``ask_to_stop``, from a thread of their own. What is wrong
    with command line or parameters is said in one line, with the status EXIT_BAD_CONFIGURATION.
    """
    with StopSignals() as signals:
        context = rclpy.Context()
        try:
            rclpy.init(args=args, context=context, signal_handler_options=SignalHandlerOptions.NO)
            node = make(context)
        except (ParameterException, FileNotFoundError, rclpy_implementation.RCLError) as error:
            print(f'timebill: {error}', file=sys.stderr)
            rclpy.try_shutdown(context=context)
            return EXIT_BAD_CONFIGURATION
        signals.call(node.ask_to_stop)
        serve(node, SingleThreadedExecutor(context=context))
        node.close()
        rclpy.shutdown(context=context)
    return 0
