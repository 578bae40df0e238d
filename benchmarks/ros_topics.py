# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
A busy ROS graph to measure beside: topics of strings at a rate, published and received, for ever.

    python3 benchmarks/ros_topics.py [--topics 20] [--rate 100]
"""

import argparse

import rclpy
from rclpy.node import Node
from std_msgs.msg import String


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('--topics', type=int, default=20)
    parser.add_argument('--rate', type=float, default=100.0)
    arguments = parser.parse_args()
    rclpy.init()
    talker, listener = Node('busy_talker'), Node('busy_listener')
    publishers = []
    for number in range(arguments.topics):
        publishers.append(talker.create_publisher(String, f'busy/topic_{number}', 10))
        listener.create_subscription(String, f'busy/topic_{number}', lambda message: None, 10)

    def publish(publisher: 'rclpy.publisher.Publisher') -> None:
        publisher.publish(String(data='x' * 64))

    for publisher in publishers:
        talker.create_timer(1.0 / arguments.rate, lambda publisher=publisher: publish(publisher))
    executor = rclpy.executors.SingleThreadedExecutor()
    executor.add_node(talker)
    executor.add_node(listener)
    executor.spin()


if __name__ == '__main__':
    main()
