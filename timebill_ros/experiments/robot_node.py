# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The robot of the experiment as a real node: a 1 Hz timer, questions through the action.

A server of its own runs beside it, with the policy under test.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
import json
import os
from typing import Any, TYPE_CHECKING

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from timebill_ros.cli.server_process import ServerProcess
from timebill_ros.client import Answer, TimeBillClient
from timebill_ros.experiments.engine_host import EngineFailed, START_S
from timebill_ros.experiments.recorder import Row
from timebill_ros.experiments.tasks import Item

if TYPE_CHECKING:
    from timebill_ros.experiments.workbench import Settings

PERIOD_S = 1.0
WARM_S = 60.0
MakeRow = Callable[[Item, Row], Row]


class Robot(Node):
    """Asks one question per tick; a tick that comes while one is open is lost, as on a robot."""

    def __init__(self, context: rclpy.Context, client: TimeBillClient,
                 ticks: Sequence[tuple[Item, float]], make_row: MakeRow) -> None:
        """Tick from now on."""
        super().__init__('robot', context=context, enable_rosout=False)
        self.rows: list[Row] = []
        self._ticks = list(ticks)
        self._client = client
        self._make_row = make_row
        self._timer = self.create_timer(PERIOD_S, self._tick)

    @property
    def done(self) -> bool:
        """Every question has been asked."""
        return not self._ticks

    def _tick(self) -> None:
        if self._ticks:
            item, budget_s = self._ticks.pop(0)
            self.rows.append(self._make_row(item, ask(self._client, item, budget_s)))


def ask(client: TimeBillClient, item: Item, budget_s: float, **fields: Any) -> Row:
    """Ask one question through the action; returns a row like those of the engine host."""
    answer = client.ask(item.prompt, within=budget_s, max_new_tokens=item.max_new_tokens, **fields)
    return row_of(answer)


def row_of(answer: Answer) -> Row:
    """Return the row of a client's answer."""
    return {
        'outcome': answer.outcome.name, 'finish_reason': answer.finish_reason.name,
        'error': answer.error_msg, 'elapsed_s': answer.elapsed_s, 'budget_s': answer.within_s,
        'response': answer.response, 'timing': asdict(answer.timing)}


def server(settings: 'Settings', policy: dict[str, Any], namespace: str) -> ServerProcess:
    """Return a server with this policy, to be entered."""
    given = ['--namespace', namespace, '--no-calibration', '--device', settings.device]
    parameters: dict[str, Any] = {
        **policy, 'model': settings.model, 'engine_python': settings.engine_python,
        'cache_dir': settings.cache_dir}
    for name, value in parameters.items():
        given += ['--param', f'{name}:={json.dumps(value)}']
    return ServerProcess(given)


def wait_until_ready(client: TimeBillClient, process: ServerProcess) -> None:
    """Wait for the server and warm it up; raises EngineFailed with the end of its log."""
    if not client.wait_for_server(START_S):
        raise EngineFailed('the server did not start:\n' + '\n'.join(list(process.log)[-20:]))
    client.ask('Hi', within=WARM_S, max_new_tokens=1)


def ask_through_node(
        ticks: Sequence[tuple[Item, float]], settings: 'Settings', policy: dict[str, Any],
        make_row: MakeRow) -> list[Row]:
    """Run a server and the robot beside it until every question has been asked."""
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    namespace = f'robot_{os.getpid()}'
    with (server(settings, policy, namespace) as process,
          TimeBillClient(namespace=namespace) as client):
        wait_until_ready(client, process)
        context = rclpy.Context()
        rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
        robot = Robot(context, client, ticks, make_row)
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
