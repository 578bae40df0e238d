# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Have a running server profile itself, through its action."""

import argparse
import time
from typing import Any

import rclpy
from rclpy.signals import SignalHandlerOptions

from timebill_ros.action import Profile
from timebill_ros.cli.profile_progress import Outcome, ProgressBar
from timebill_ros.nodes import qos
from timebill_ros.nodes.coefficients_topic import coefficients_from_msg
from timebill_ros.nodes.conversions import duration_s
from timebill_ros.nodes.quiet_client import QuietActionClient

_SERVER_WAIT_S = 5.0
_LOOK_S = 0.02
_CANCEL_S = 30.0        # a point that is being measured is measured to its end


def measure(arguments: argparse.Namespace, bar: ProgressBar) -> Outcome:
    """Send a goal and follow it; an interrupt cancels it."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)     # an interrupt is ours
    node = rclpy.create_node('timebill_profile', namespace=arguments.namespace)
    client = QuietActionClient(node, Profile, node.resolve_topic_name(qos.PROFILE_ACTION_NAME))
    try:
        end_s = time.monotonic() + _SERVER_WAIT_S
        while not client.is_heard() and time.monotonic() < end_s:
            rclpy.spin_once(node, timeout_sec=_LOOK_S)
        if not client.is_heard():
            return Outcome(None, '', f'no server answers within {_SERVER_WAIT_S:g} s')
        sent = client.send_goal_async(_goal(arguments), lambda each: _show(bar, each.feedback))
        rclpy.spin_until_future_complete(node, sent)
        handle: Any = sent.result()
        if not handle.accepted:
            return Outcome(None, '', 'the server takes no goals')
        result = handle.get_result_async()
        try:
            rclpy.spin_until_future_complete(node, result)
        except KeyboardInterrupt:
            handle.cancel_goal_async()
            rclpy.spin_until_future_complete(node, result, timeout_sec=_CANCEL_S)
            raise
        return _outcome(result.result().result)
    finally:
        client.destroy()
        node.destroy_node()
        rclpy.try_shutdown()


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
