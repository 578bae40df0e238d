# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
A planner that asks the language model in its control loop and always goes on in time.

Run it beside a server: ``timebill serve`` in one terminal, this file in another.
"""

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from timebill_ros.client import TimeBillClient
from timebill_ros.query import Admission

PERIOD_S = 5.0
BUDGET_S = 4.0


class Planner(Node):
    """Decides every PERIOD_S where to go, with the model's advice if that comes within BUDGET_S."""

    def __init__(self) -> None:
        """Connect to the server in this node's namespace."""
        super().__init__('planner')
        self._model = TimeBillClient(self)
        self._timer = self.create_timer(PERIOD_S, self._decide)

    def _decide(self) -> None:
        # Blocking is fine: the client does not need this node's executor, and comes back in time.
        answer = self._model.ask(
            'A robot stands before a closed door. What should it do? Answer in one short sentence.',
            within=BUDGET_S,
            max_new_tokens=30,
            admission=Admission.GUARANTEED,
        )
        if answer.ok:
            self.get_logger().info(f'in {answer.elapsed_s:.2f} s: {answer.response}')
        else:
            self.get_logger().warning(
                f'default plan, because {answer.outcome.name}: {answer.error_msg}')


def main() -> None:
    """Spin the planner until Ctrl-C."""
    rclpy.init()
    try:
        rclpy.spin(Planner())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass


if __name__ == '__main__':
    main()
