# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The topic /diagnostics after REP-107: one status per task of a node, once a second."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isnan

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from timebill_ros.executor.supervisor import EngineState
from timebill_ros.msg import ExecutorStatus
from timebill_ros.time_estimator.coefficients import FROM_TOPIC

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
DIAGNOSTICS_TOPIC = '/diagnostics'
PERIOD_S = 1.0
WARN_MISS_RATIO = 0.05  # share of queries that missed their deadline in the status' window


@dataclass
class Diagnosis:
    """How one task of a node is: a summary for people, and the numbers behind it."""

    task: str
    level: bytes  # OK, WARN or ERROR
    summary: str
    values: dict[str, str] = field(default_factory=dict)


class Diagnostics:
    """Publishes what a node says about its tasks."""

    def __init__(self, node: Node) -> None:
        """Name the tasks after the node and, where it has one, its namespace."""
        self._node = node
        self._name = node.get_fully_qualified_name().strip('/')
        self._publisher = node.create_publisher(DiagnosticArray, DIAGNOSTICS_TOPIC, 10)

    def publish(self, diagnoses: Iterable[Diagnosis], hardware_id: str = '') -> None:
        """Publish the tasks' states; ``hardware_id`` names the device that is driven."""
        message = DiagnosticArray(
            status=[
                DiagnosticStatus(
                    level=each.level,
                    name=f'{self._name}: {each.task}',
                    message=each.summary,
                    hardware_id=hardware_id,
                    values=[KeyValue(key=key, value=value) for key, value in each.values.items()],
                )
                for each in diagnoses
            ]
        )
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)


def server_diagnoses(status: ExecutorStatus, refused: str) -> list[Diagnosis]:
    """Return the state of the query server; ``refused``: why published coefficients are."""
    return [_engine(status), _queries(status), _coefficients(status, refused)]


def _engine(status: ExecutorStatus) -> Diagnosis:
    state = EngineState(status.engine_state)
    level = {EngineState.READY: OK, EngineState.FAILED: ERROR}.get(state, WARN)
    return Diagnosis(
        'engine',
        level,
        status.engine_message or state.name.lower(),
        {
            'state': state.name,
            'restarts': str(status.engine_restarts),
            'busy ratio': f'{status.busy_ratio:.3f}',
            'node memory (bytes)': str(status.node_memory_bytes),
            'engine memory (bytes)': str(status.engine_memory_bytes),
            'device memory (bytes)': str(status.device_memory_bytes),
        },
    )


def _queries(status: ExecutorStatus) -> Diagnosis:
    missed = 0.0 if isnan(status.miss_ratio) else status.miss_ratio
    full = status.queue_limit > 0 and status.queue_depth >= status.queue_limit
    summary = f'{status.running} running, {status.queue_depth} waiting'
    if missed > WARN_MISS_RATIO:
        summary += f'; {missed:.0%} of the last {status.window_s:g} s missed their deadline'
    if full:
        summary += '; the queue is full'
    return Diagnosis(
        'queries',
        WARN if full or missed > WARN_MISS_RATIO else OK,
        summary,
        {
            'running': str(status.running),
            'waiting': str(status.queue_depth),
            'queue limit': str(status.queue_limit),
            'miss ratio': f'{status.miss_ratio:.3f}',
            'window (s)': f'{status.window_s:g}',
            'pessimistic factor': f'{status.pessimistic_factor:g}',
        },
    )


def _coefficients(status: ExecutorStatus, refused: str) -> Diagnosis:
    values = {
        'key': status.coefficients_key,
        'source': status.coefficients_source,
        'stamp': f'{status.coefficients_stamp.sec}.{status.coefficients_stamp.nanosec:09d}',
    }
    if not status.coefficients_source:
        return Diagnosis('coefficients', WARN, 'none yet: the engine starts', values)
    if refused:
        return Diagnosis('coefficients', WARN, f'published ones are refused: {refused}', values)
    if status.coefficients_source != FROM_TOPIC:
        return Diagnosis(
            'coefficients', OK, 'as at start-up: no calibration node has published any', values
        )
    return Diagnosis('coefficients', OK, 'as published by the calibration node', values)
