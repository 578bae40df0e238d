# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill record``: every query of a server as one line of JSON, for ``timebill plot``."""

import argparse
import json
import sys
import time
from typing import TextIO

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from timebill_ros.cli.arguments import add_namespace
from timebill_ros.msg import QueryTiming
from timebill_ros.nodes import qos
from timebill_ros.nodes.conversions import json_value
from timebill_ros.nodes.guarded import guarded, spin_while
from timebill_ros.query import Outcome


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument('out', help='file to append to; "-" is standard output')
    add_namespace(parser, 'server')
    parser.add_argument('--queries', type=int, default=0, metavar='N', help='end after N queries')
    parser.add_argument('--seconds', type=float, default=0.0, metavar='S', help='end after S')


def run(arguments: argparse.Namespace) -> int:
    """Record until interrupted, or for as long as asked."""
    try:
        if arguments.out == '-':
            return _record(sys.stdout, arguments)
        with open(arguments.out, 'a', encoding='utf-8') as out:
            return _record(out, arguments)
    except OSError as error:
        print(f'timebill record: {error}', file=sys.stderr)
        return 1


def _record(out: TextIO, arguments: argparse.Namespace) -> int:
    context = rclpy.Context()
    rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = Node('timebill_record', context=context, namespace=arguments.namespace)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    heard = 0

    def write(message: QueryTiming) -> None:
        nonlocal heard
        heard += 1
        values = {**json_value(message), 'outcome': Outcome(message.outcome).name}
        print(json.dumps(values, ensure_ascii=False), file=out, flush=True)

    log = node.get_logger()
    node.create_subscription(
        QueryTiming, qos.TIMING_TOPIC, guarded(log, write), qos.timing_qos()
    )
    end_s = time.monotonic() + arguments.seconds if arguments.seconds else float('inf')
    try:
        spin_while(
            executor,
            log,
            lambda: time.monotonic() < end_s and not 0 < arguments.queries <= heard,
            0.2,
        )
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)
    return 0
