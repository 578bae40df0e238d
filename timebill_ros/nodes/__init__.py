# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 nodes; the only rooms, beside the client library and the command line, that import rclpy."""
