# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Brings what other threads have to say into the node's one thread."""

from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.node import Node


class EventInbox:
    """
    A queue of events that any thread may fill, emptied in the thread that spins the node.

    A guard condition wakes the executor. It works alike on every rclpy, and needs no lock of ours:
    appending to and popping from a deque are atomic.
    """

    def __init__(self, node: Node, handle: Callable[[Any], None]) -> None:
        """Attach to a node; ``handle(event)`` must not raise."""
        self._handle = handle
        self._events: deque[Any] = deque()
        self._guard = node.create_guard_condition(self._drain)

    def post(self, event: Any) -> None:
        """Queue an event and wake the node; returns at once."""
        self._events.append(event)
        self._guard.trigger()

    def _drain(self) -> None:
        # Only what is there now: deadlines and cancels must have their turn between two bursts of
        # events.
        for _ in range(len(self._events)):
            self._handle(self._events.popleft())
