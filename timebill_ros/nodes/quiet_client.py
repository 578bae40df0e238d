# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
An action client that knows when it is heard, and does not read the states of everybody's goals.

DDS loses a response that is sent before the server has discovered who is to read it, which a new
client cannot see (rmw_fastrtps waits 0.1 s for it, then rclpy drops the goal). So a server is first
asked for the result of a goal that nobody sent, until it has answered. The result service is the
last that an action client opens: who is heard there is heard on the others.

Every change of a goal's state sends the states of all goals of the last RESULT_TIMEOUT_S to every
client, and rclpy makes objects of them all: at thirty queries a second that takes several clients
in one process longer than all else, and answers reach them late. Who waits for results needs none
of it.
"""

from collections.abc import Callable
import time
from typing import Any
import uuid

from action_msgs.msg import GoalStatusArray
from rclpy.action import ActionClient
from rclpy.action.client import ClientGoalHandle
from rclpy.node import Node
from std_msgs.msg import Empty
from unique_identifier_msgs.msg import UUID

from timebill_ros.nodes import qos

# Until the server answers, it is asked again after so long, then after twice that, and so on: a
# response that is lost holds the server up.
_KNOCK_NS = 150_000_000

_Servers = frozenset[bytes]  # DDS ids: a server that was restarted is another


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

    def __init__(
        self,
        node: Node,
        action_type: Any,
        name: str,
        on_heard: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Connect to the action of this full name.

        ``on_heard()``, in the node's thread, when a server has answered that did not before.
        """
        super().__init__(
            node,
            action_type,
            name,
            feedback_sub_qos_profile=qos.feedback_qos(),
            **qos.service_qos(),
        )
        self._unread = _Unread()
        self._status_topic = f'{name}/_action/status'
        self._on_heard = on_heard
        self._heard_by = _Servers()
        self._knocked_at = _Servers()
        self._knock_at_ns = self._knock_wait_ns = 0

    def is_heard(self) -> bool:
        """
        Tell whether the server's answers reach this client; if unknown, ask it.

        Called in the node's thread, again and again until it is true.
        """
        if not self.server_is_ready():
            return False
        servers = _Servers(
            bytes(each.endpoint_gid)
            for each in self._node.get_publishers_info_by_topic(self._status_topic)
        )
        if servers and servers == self._heard_by:
            return True
        now_ns = time.monotonic_ns()
        if servers != self._knocked_at:
            self._knocked_at, self._knock_at_ns, self._knock_wait_ns = servers, now_ns, _KNOCK_NS
        if now_ns >= self._knock_at_ns:
            self._knock_at_ns = now_ns + self._knock_wait_ns
            self._knock_wait_ns *= 2
            self._knock(servers)
        return False

    def _knock(self, servers: _Servers) -> None:
        nobodys = ClientGoalHandle(
            self,
            UUID(uuid=list(uuid.uuid4().bytes)),
            self._action_type.Impl.SendGoalService.Response(accepted=True),
        )

        def answered(_: Any) -> None:
            self._heard_by = servers
            self._on_heard()

        nobodys.get_result_async().add_done_callback(answered)

    def take_data(self) -> dict[str, Any]:
        """Take what is ready; of a status message nothing but itself."""
        if self._is_status_ready:
            self._client_handle.take_status(self._unread)
            self._is_status_ready = False
        return super().take_data()

    def forget(self, handle: Any) -> None:
        """Drop what rclpy would keep of a goal until its status says that it has ended."""
        self._goal_handles.pop(bytes(handle.goal_id.uuid), None)
