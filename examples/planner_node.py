# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
A planner that asks the language model in its control loop and always goes on in time.

It degrades step by step: a promised sentence; if that cannot be promised, a word for what is left
of the budget; if that does not come, the decision it had; after MISSES_TO_STOP cycles without an
answer, standing still. Run it beside a server: ``timebill serve`` in one terminal, this file in
another.
"""

import time

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node

from timebill_ros.client import Answer, TimeBillClient
from timebill_ros.query import Admission, Outcome, Overrun

PERIOD_S = 5.0
BUDGET_S = 4.0
LEAST_BUDGET_S = 0.3
MISSES_TO_STOP = 3
SITUATION = 'A robot stands before a closed door. '


class Planner(Node):
    """Decides every PERIOD_S what to do, with the model's advice if that comes within BUDGET_S."""

    def __init__(self) -> None:
        """Connect to the server in this node's namespace."""
        super().__init__('planner')
        self._model = TimeBillClient(self)
        self._timer = self.create_timer(PERIOD_S, self._decide)
        self._decision = 'wait'
        self._misses = 0

    def _decide(self) -> None:
        # Blocking is fine: the client does not need this node's executor, and comes back in time.
        answer = self._advice(time.monotonic() + BUDGET_S)
        log = self.get_logger()
        if answer.ok:
            self._decision, self._misses = answer.response.strip(), 0
            log.info(f'{self._decision!r}, {answer.outcome.name} in {answer.elapsed_s:.2f} s')
            return
        self._misses += 1
        if self._misses >= MISSES_TO_STOP:
            self._decision = 'stop'
        log.warning(f'{self._decision!r} as {answer.outcome.name}: {answer.error_msg}')

    def _advice(self, until_s: float) -> Answer:
        """Ask for a sentence, then for less; returns the last answer, good or bad."""
        answer = self._model.ask(
            SITUATION + 'What should it do? Answer in one short sentence.',
            within=until_s - time.monotonic(),
            max_new_tokens=30,
            admission=Admission.GUARANTEED,
            overrun=Overrun.SOFT_LANDING,
        )
        left_s = until_s - time.monotonic()
        # Refused at once, so that nearly all of the budget is left for something smaller.
        if answer.outcome in (Outcome.INFEASIBLE, Outcome.SKIPPED) and left_s > LEAST_BUDGET_S:
            answer = self._model.ask(
                SITUATION + 'Should it open the door? Answer yes or no.',
                within=left_s,
                max_new_tokens=3,
            )
        return answer


def main() -> None:
    """Spin the planner until Ctrl-C."""
    rclpy.init()
    try:
        rclpy.spin(Planner())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass


if __name__ == '__main__':
    main()
