# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
A busy ROS graph: topics published at a rate, and a query server whose process listens to them.

Arguments of ``main``: publish|serve TOPICS RATE_HZ [ROS arguments]
"""

import sys

import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import String

from timebill_ros.nodes import query_server

PAYLOAD = 'x' * 100
DEPTH = 10


def topic_name(number: int) -> str:
    """Return the name of one of the topics."""
    return f'timebill_load/topic_{number}'


class Publishers(Node):
    """Publishes on every topic at the rate."""

    def __init__(self, topics: int, rate_hz: float) -> None:
        """Begin."""
        super().__init__('timebill_load_publisher')
        self._publishers = [
            self.create_publisher(String, topic_name(number), DEPTH) for number in range(topics)
        ]
        self.create_timer(1.0 / rate_hz, self._publish)

    def _publish(self) -> None:
        for publisher in self._publishers:
            publisher.publish(String(data=PAYLOAD))


class ListeningServer(query_server.QueryServer):
    """A query server in whose process callbacks run for every message of the topics."""

    topics = 0

    def __init__(self, **node_arguments: object) -> None:
        """Start the server and subscribe."""
        super().__init__(**node_arguments)
        self.heard = 0
        for number in range(self.topics):
            self.create_subscription(String, topic_name(number), self._on_message, DEPTH)

    def _on_message(self, message: String) -> None:
        self.heard += len(message.data)


def main() -> int:
    """Publish, or serve, until interrupted."""
    what, topics, rate_hz, *ros_arguments = sys.argv[1:]
    if what == 'serve':
        ListeningServer.topics = int(topics)
        return query_server.main(ros_arguments, ListeningServer)
    rclpy.init(args=ros_arguments)
    executor = SingleThreadedExecutor()
    executor.add_node(Publishers(int(topics), float(rate_hz)))
    try:
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    return 0
