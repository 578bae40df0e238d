# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""No exception of a callback ends ``spin()``."""

from collections.abc import Iterator
import time

import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from timebill_ros.nodes.deadline_timer import DeadlineTimer
from timebill_ros.nodes.event_inbox import EventInbox
from timebill_ros.nodes.guarded import guarded, spin_while

S = 1_000_000_000


@pytest.fixture
def node(ros_domain: int) -> Iterator[Node]:
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    made = Node('guarded', context=context)
    yield made
    made.destroy_node()
    context.shutdown()


@pytest.fixture
def executor(node: Node) -> Iterator[SingleThreadedExecutor]:
    made = SingleThreadedExecutor(context=node.context)
    made.add_node(node)
    yield made
    made.shutdown()


def test_a_guarded_callback_answers_with_its_fallback(node: Node) -> None:
    def fails(value: int) -> int:
        return 1 // value

    safe = guarded(node.get_logger(), fails, fallback=-1)
    assert (safe(1), safe(0)) == (1, -1)


def test_spinning_survives_callbacks_that_raise(
    node: Node, executor: SingleThreadedExecutor
) -> None:
    calls: list[float] = []

    def fails() -> None:
        calls.append(time.monotonic())
        raise RuntimeError('as the test wants it')

    node.create_timer(0.01, fails)
    spin_while(executor, node.get_logger(), lambda: len(calls) < 5)
    assert len(calls) == 5


def test_events_of_other_threads_are_handled_in_order(
    node: Node, executor: SingleThreadedExecutor
) -> None:
    seen: list[int] = []
    inbox = EventInbox(node, seen.append)
    for number in range(100):
        inbox.post(number)
    spin_while(executor, node.get_logger(), lambda: len(seen) < 100)
    assert seen == list(range(100))


def test_a_deadline_comes_once_never_early_and_can_be_moved(
    node: Node, executor: SingleThreadedExecutor
) -> None:
    fired: list[int] = []
    timer = DeadlineTimer(node, lambda: fired.append(time.monotonic_ns()))
    far_ns, due_ns = (time.monotonic_ns() + delay_ns for delay_ns in (3600 * S, S // 10))
    timer.arm(far_ns)
    timer.arm(due_ns)
    spin_while(executor, node.get_logger(), lambda: not fired, 0.5)
    assert fired[0] >= due_ns
    timer.arm(time.monotonic_ns() + S // 20)
    timer.arm(None)
    end_s = time.monotonic() + 0.2
    spin_while(executor, node.get_logger(), lambda: time.monotonic() < end_s, 0.05)
    assert len(fired) == 1
    timer.arm(1)  # long past
    spin_while(executor, node.get_logger(), lambda: len(fired) < 2, 0.5)
