# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
An action server as rclpy comes, which ends every query at once: what any node's goals cost.

Arguments of ``main``: [ROS arguments]
"""

from typing import Any

import rclpy
from rclpy.action import ActionServer
from rclpy.executors import ExternalShutdownException

from timebill_ros.action import Query as QueryAction
from timebill_ros.nodes import qos
from timebill_ros.query import Outcome


def main() -> int:
    """Serve until interrupted."""
    rclpy.init()
    node = rclpy.create_node('timebill_bare')

    def execute(handle: Any) -> QueryAction.Result:
        handle.succeed()
        return QueryAction.Result(outcome=Outcome.COMPLETED.value)

    server = ActionServer(node, QueryAction, qos.ACTION_NAME, execute, **qos.service_qos())
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    server.destroy()
    return 0
