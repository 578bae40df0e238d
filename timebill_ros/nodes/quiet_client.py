# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
An action client that does not read the states of everybody's goals.

Every change of a goal's state sends the states of all goals of the last RESULT_TIMEOUT_S to every
client, and rclpy makes objects of them all: at thirty queries a second that takes several clients
in one process longer than all else, and answers reach them late. Who waits for results needs none
of it.
"""

from typing import Any

from action_msgs.msg import GoalStatusArray
from rclpy.action import ActionClient
from rclpy.node import Node
from std_msgs.msg import Empty

from timebill_ros.nodes import qos


class _Unread:
    """What rclpy takes a status message as: one in memory, turned into an Empty in Python."""

    def __init__(self) -> None:
        """Borrow what the interfaces' generator made; rclpy asks an instance's class for it."""
        status, empty = type(GoalStatusArray), type(Empty)
        for each in (status, empty):
            each.__import_type_support__()
        _Unread._CREATE_ROS_MESSAGE = status._CREATE_ROS_MESSAGE
        _Unread._DESTROY_ROS_MESSAGE = status._DESTROY_ROS_MESSAGE
        _Unread._CONVERT_TO_PY = empty._CONVERT_TO_PY


class QuietActionClient(ActionClient):
    """
    Follows its goals by their results alone: the status of its goal handles never changes.

    It steps in where rclpy's Waitable API takes messages, alike in Jazzy, Kilted and Lyrical.
    """

    def __init__(self, node: Node, action_type: Any, name: str) -> None:
        """Connect to the action of this name."""
        super().__init__(
            node,
            action_type,
            name,
            feedback_sub_qos_profile=qos.feedback_qos(),
            **qos.service_qos(),
        )
        self._unread = _Unread()

    def take_data(self) -> dict[str, Any]:
        """Take what is ready; of a status message nothing but itself."""
        if self._is_status_ready:
            self._client_handle.take_status(self._unread)
            self._is_status_ready = False
        return super().take_data()

    def forget(self, handle: Any) -> None:
        """Drop what rclpy would keep of a goal until its status says that it has ended."""
        self._goal_handles.pop(bytes(handle.goal_id.uuid), None)
