# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
A script for the tests of builds: use the interfaces that this interpreter finds.

Sends one message through DDS, makes an action client, and prints where the package lies.
"""

from pathlib import Path
import time

import rclpy
from rclpy.action import ActionClient

import timebill_ros
from timebill_ros.action import Profile, Query
from timebill_ros.msg import QueryTiming
from timebill_ros.query import Outcome

TIMEOUT_S = 20.0


def main() -> None:
    """Raise if anything is missing."""
    rclpy.init()
    node = rclpy.create_node('exchange')
    received: list[QueryTiming] = []
    node.create_subscription(QueryTiming, 'timing', received.append, 10)
    publisher = node.create_publisher(QueryTiming, 'timing', 10)
    for action in (Query, Profile):
        ActionClient(node, action, 'a_' + action.__name__.lower()).destroy()
    goal = Query.Goal(prompt='Where is the charger?')
    goal.time_allowance.sec = 2
    end_s = time.monotonic() + TIMEOUT_S
    while not received and time.monotonic() < end_s:
        publisher.publish(QueryTiming(model='m', outcome=Query.Result.OUTCOME_COMPLETED, alpha=0.5))
        rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_node()
    rclpy.shutdown()
    assert received[0].outcome == Outcome.COMPLETED
    assert received[0].alpha == 0.5
    print(Path(timebill_ros.__file__).parent)


if __name__ == '__main__':
    main()
