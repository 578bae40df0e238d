# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Have a running server profile itself, through its action."""

import argparse
import signal
import time

import rclpy
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from timebill_ros.action import Profile
from timebill_ros.cli.profile_progress import Outcome, ProgressBar
from timebill_ros.nodes import qos
from timebill_ros.nodes.coefficients_topic import coefficients_from_msg
from timebill_ros.nodes.conversions import duration_s
from timebill_ros.nodes.quiet_client import QuietActionClient

_SERVER_WAIT_S = 5.0
_LOOK_S = 0.02
_SIGNAL_S = 0.2
_CANCEL_S = 30.0        # a point that is being measured is measured to its end


def measure(arguments: argparse.Namespace, bar: ProgressBar) -> Outcome:
    """Send a goal and follow it; an interrupt, or SIGTERM, cancels it (main thread only)."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)     # an interrupt is ours
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    node = rclpy.create_node('timebill_profile', namespace=arguments.namespace)
    client = QuietActionClient(node, Profile, node.resolve_topic_name(qos.PROFILE_ACTION_NAME))
    try:
        if not _is_heard(node, client):
            return Outcome(None, '', f'no server answers within {_SERVER_WAIT_S:g} s')
        sent = client.send_goal_async(_goal(arguments), lambda each: _show(bar, each.feedback))
        return _follow(node, client, sent)
    finally:
        client.destroy()
        node.destroy_node()
        rclpy.try_shutdown()
        signal.signal(signal.SIGTERM, before)


def _follow(node: Node, client: QuietActionClient, sent: Future) -> Outcome:
    """Return how a goal ended; cancel it where somebody interrupts."""
    result: Future | None = None
    try:
        if not _spin(node, client, sent):
            return Outcome(None, '', 'the server is gone')
        if not sent.result().accepted:
            return Outcome(None, '', 'the server takes no goals')
        result = sent.result().get_result_async()
        if not _spin(node, client, result):
            return Outcome(None, '', 'the server is gone')
        return _outcome(result.result().result)
    except KeyboardInterrupt:
        # interrupted before it heard of it, too: the server measures all the same
        rclpy.spin_until_future_complete(node, sent, timeout_sec=_SERVER_WAIT_S)
        if sent.done() and sent.result().accepted:
            result = result or sent.result().get_result_async()
            sent.result().cancel_goal_async()
            rclpy.spin_until_future_complete(node, result, timeout_sec=_CANCEL_S)
        raise


def _is_heard(node: Node, client: QuietActionClient) -> bool:
    """Wait for a server; tell whether there is one."""
    end_s = time.monotonic() + _SERVER_WAIT_S
    while not client.is_heard() and time.monotonic() < end_s:
        rclpy.spin_once(node, timeout_sec=_LOOK_S)
    return client.is_heard()


def _spin(node: Node, client: QuietActionClient, future: Future) -> bool:
    """Spin until it is done; tell whether it is, and not its server gone."""
    seen_s = time.monotonic()
    while not future.done() and time.monotonic() < seen_s + _SERVER_WAIT_S:
        # never without a limit: a signal is noticed between two waits
        rclpy.spin_until_future_complete(node, future, timeout_sec=_SIGNAL_S)
        if client.server_is_ready():
            seen_s = time.monotonic()
    return future.done()


def _goal(arguments: argparse.Namespace) -> Profile.Goal:
    busy = Profile.Goal.BUSY_DRAIN if arguments.drain else Profile.Goal.BUSY_REFUSE
    return Profile.Goal(
        max_tokens=arguments.max_tokens, repeats=arguments.repeats, when_busy=busy)


def _show(bar: ProgressBar, feedback: Profile.Feedback) -> None:
    bar.move(
        feedback.stage, feedback.done, feedback.total, duration_s(feedback.predicted_left))


def _outcome(result: Profile.Result) -> Outcome:
    if result.error_code != Profile.Result.NONE:
        return Outcome(None, '', result.error_msg)
    return Outcome(coefficients_from_msg(result.coefficients), result.path)
