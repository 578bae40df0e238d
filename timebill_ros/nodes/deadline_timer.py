# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A timer that fires once at a moment of the steady clock, and can be set again at any time."""

from collections.abc import Callable
import time

from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from timebill_ros.query import NS_PER_S

_IDLE_NS = 3_600_000_000_000


class DeadlineTimer:
    """Calls back in the node's thread once the moment it was armed for has come; never early."""

    def __init__(self, node: Node, callback: Callable[[], None]) -> None:
        """Create it unarmed; neither /clock nor use_sim_time moves it."""
        self._callback = callback
        self._due_ns: int | None = None
        self._timer = node.create_timer(
            _IDLE_NS / NS_PER_S, self._fired, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )
        self._timer.cancel()

    def arm(self, due_ns: int | None) -> None:
        """Fire at this moment (``time.monotonic_ns``), or never; call from the node's thread."""
        if due_ns == self._due_ns:
            return
        self._due_ns = due_ns
        self._restart()

    def _restart(self) -> None:
        if self._due_ns is None:
            self._timer.cancel()
            return
        self._timer.timer_period_ns = max(1, self._due_ns - time.monotonic_ns())
        self._timer.reset()

    def _fired(self) -> None:
        if self._due_ns is None:
            return
        if (
            time.monotonic_ns() < self._due_ns
        ):  # the period was rounded, or the two clocks differ by a little
            self._restart()
            return
        self._due_ns = None
        self._timer.cancel()
        self._callback()
