# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the query server plans with: the coefficients on the topic, before that its file."""

from collections.abc import Callable
from typing import Any

from rclpy.node import Node

from timebill_ros.executor.messages import Adopt, Ready
from timebill_ros.msg import ExecutorStatus
from timebill_ros.msg import TimingCoefficients as TimingCoefficientsMsg
from timebill_ros.nodes import qos
from timebill_ros.nodes.coefficients_topic import coefficients_from_msg
from timebill_ros.nodes.conversions import time_msg
from timebill_ros.nodes.guarded import guarded
from timebill_ros.time_estimator.coefficients import (
    CoefficientsError,
    FROM_TOPIC,
    TimingCoefficients,
)

_MAX_CAUSES = 100  # warned of, each once


class CoefficientsIntake:
    """
    Hands to the engine what the calibration node publishes, if it is valid for that engine.

    Anything else is warned of, once per cause, and changes nothing. The engine adopts between two
    queries. All of it runs in the node's one thread.
    """

    def __init__(self, node: Node, send: Callable[[int, Any], None]) -> None:
        """Subscribe; ``send(generation, message)`` reaches the engine process."""
        self.in_force: TimingCoefficients | None = None
        self.source = ''
        self.refused = ''  # why the newest message was; '' = it was not
        self._log = node.get_logger()
        self._send = send
        self._generation = 0  # engine process that is ready; 0 = none is
        self._latest: TimingCoefficients | None = None  # the newest valid ones on the topic
        self._warned: set[str] = set()
        node.create_subscription(
            TimingCoefficientsMsg,
            qos.COEFFICIENTS_TOPIC,
            guarded(self._log, self._on_message),
            qos.latched_qos(),
        )

    def engine_ready(self, generation: int, ready: Ready) -> None:
        """Take in what a new engine process plans with; the topic's go before, unless older."""
        self._generation = generation
        self.took_over(ready.coefficients, ready.coefficients_source)
        if (
            self._latest is not None
            and self.in_force is not None
            and (self._latest.stamp_ns >= self.in_force.stamp_ns)
        ):
            self._offer(self._latest)

    def engine_lost(self) -> None:
        """Keep what is published until the next engine process is ready."""
        self._generation = 0

    def took_over(self, coefficients: dict[str, Any], source: str) -> None:
        """Take in what the engine says it plans with from now on."""
        self.in_force = TimingCoefficients.from_dict(coefficients)
        self.source = source

    @property
    def device(self) -> str:
        """Return the device of the engine; '' before one was ready."""
        return '' if self.in_force is None else self.in_force.device

    def describe(self, status: ExecutorStatus) -> ExecutorStatus:
        """Write into the status what queries are planned with."""
        if self.in_force is not None:
            status.coefficients_key = self.in_force.key
            status.coefficients_source = self.source
            status.coefficients_stamp = time_msg(self.in_force.stamp_ns)
        return status

    def _on_message(self, message: TimingCoefficientsMsg) -> None:
        try:
            coefficients = coefficients_from_msg(message)
        except CoefficientsError as error:
            self._refuse(str(error))
            return
        self._latest = coefficients
        if self._generation:
            self._offer(coefficients)

    def _offer(self, coefficients: TimingCoefficients) -> None:
        assert self.in_force is not None
        try:
            coefficients.require_key(self.in_force.key)
        except CoefficientsError as error:
            self._refuse(str(error))
            return
        self.refused = ''
        self.in_force, self.source = coefficients, FROM_TOPIC
        self._send(self._generation, Adopt(coefficients.to_dict(), FROM_TOPIC))

    def _refuse(self, cause: str) -> None:
        self.refused = cause
        if cause not in self._warned and len(self._warned) < _MAX_CAUSES:
            self._warned.add(cause)
            kept = f'those of {self.source!r} stay in force' if self.source else 'none are in force'
            self._log.warning(
                f'coefficients on {qos.COEFFICIENTS_TOPIC} are refused: {cause}; {kept}'
            )
