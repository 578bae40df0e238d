# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 nodes; only they, the client library and the command line import rclpy."""
