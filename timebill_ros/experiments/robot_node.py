# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The robot of the experiment as a real node: a 1 Hz timer, questions through the action."""

from collections.abc import Callable, Sequence

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from timebill_ros.experiments.recorder import Row
from timebill_ros.experiments.ros_host import RosHost
from timebill_ros.experiments.tasks import Item
from timebill_ros.query import Overrun

PERIOD_S = 1.0
MakeRow = Callable[[Item, Row], Row]


class Robot(Node):
    """Asks one question per tick; a tick that comes while one is open is lost, as on a robot."""

    def __init__(self, context: rclpy.Context, host: RosHost,
                 ticks: Sequence[tuple[Item, float]], make_row: MakeRow) -> None:
        """Tick from now on."""
        super().__init__('robot', context=context, enable_rosout=False)
        self.rows: list[Row] = []
        self._ticks = list(ticks)
        self._host = host
        self._make_row = make_row
        self._timer = self.create_timer(PERIOD_S, self._tick)

    @property
    def done(self) -> bool:
        """Every question has been asked."""
        return not self._ticks

    def _tick(self) -> None:
        if self._ticks:
            item, budget_s = self._ticks.pop(0)
            # Blocking is fine: the client does not need this node's executor.
            self.rows.append(self._make_row(
                item, self._host.ask(item, budget_s, overrun=Overrun.SOFT_LANDING)))


def ask_through_node(
        host: RosHost, ticks: Sequence[tuple[Item, float]], make_row: MakeRow) -> list[Row]:
    """Run the robot beside a server until every question has been asked."""
    context = rclpy.Context()
    rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
    robot = Robot(context, host, ticks, make_row)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(robot)
    try:
        while not robot.done:
            executor.spin_once(timeout_sec=PERIOD_S)
    finally:
        executor.shutdown()
        robot.destroy_node()
        rclpy.shutdown(context=context)
    return robot.rows
