# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The node ``timebill``: the action server ``timebill/query`` in front of one engine process.

One thread, that of the executor which spins the node, owns all goals. The supervisor's threads
only post events.
"""

import os
import time
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter

from timebill_ros.action import Query as QueryAction
from timebill_ros.executor.engine_command import engine_argv, engine_environment, engine_python
from timebill_ros.executor.messages import (
    Alive,
    Finished,
    Loading,
    Planned,
    ProfileDone,
    ProfileProgress,
    Progress,
    Ready,
)
from timebill_ros.executor.supervisor import EngineLine, EngineLost, EngineSaid, Limits, Supervisor
from timebill_ros.msg import ExecutorStatus
from timebill_ros.msg import QueryTiming as QueryTimingMsg
from timebill_ros.nodes import qos
from timebill_ros.nodes.coefficients_intake import CoefficientsIntake
from timebill_ros.nodes.deadline_timer import DeadlineTimer
from timebill_ros.nodes.diagnostics import Diagnostics, server_diagnoses
from timebill_ros.nodes.event_inbox import EventInbox
from timebill_ros.nodes.goal_desk import GoalDesk
from timebill_ros.nodes.goal_record import GoalRecord
from timebill_ros.nodes.guarded import guarded, spin_while
from timebill_ros.nodes.parameters import apply_parameters, declare_parameters
from timebill_ros.nodes.profile_action import ProfileAction
from timebill_ros.nodes.run import run_node
from timebill_ros.nodes.status import StatusReport
from timebill_ros.query import Ending, ErrorCode, Outcome

STATUS_PERIOD_S = 1.0
# When the node is stopped: for the results of open goals, and then for DDS to send them.
DRAIN_S = 1.0
LINGER_S = 0.2


class _StopAsked:
    """Event: somebody wants the node to end."""


class QueryServer(Node):
    """Takes goals, hands them to the engine process, and ends every one of them in time."""

    def __init__(self, **node_arguments: Any) -> None:
        """
        Declare the parameters and start the engine; the arguments are those of rclpy's Node.

        Raises rclpy's ParameterException, or FileNotFoundError for an interpreter that does not
        exist.
        """
        super().__init__('timebill', **node_arguments)
        log = self.get_logger()
        self.parameters = declare_parameters(self)
        self.add_post_set_parameters_callback(guarded(log, self._on_parameters))
        self.stop_asked = False
        self._arrival_ns = 0
        self._loading_logged: set[tuple[str, int]] = set()
        self._report = StatusReport()
        self._server: ActionServer | None = None
        self._timing = self.create_publisher(QueryTimingMsg, qos.TIMING_TOPIC, qos.timing_qos())
        self._status = self.create_publisher(ExecutorStatus, qos.STATUS_TOPIC, qos.status_qos())
        self._inbox = EventInbox(self, guarded(log, self._on_event))
        self._deadline = DeadlineTimer(self, guarded(log, self._on_deadline))
        self._diagnostics = Diagnostics(self)
        self.create_timer(
            STATUS_PERIOD_S,
            guarded(log, self._publish_status),
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        self._limits = Limits(
            self.parameters.engine_timeout_s, self.parameters.engine_start_timeout_s
        )
        python = engine_python(self.parameters.engine_python)
        self._supervisor = Supervisor(
            lambda read_fd, write_fd: engine_argv(python, read_fd, write_fd),
            engine_environment(os.environ),
            self.parameters.load_message(),
            self._inbox.post,
            self._limits,
        )
        self._desk = GoalDesk(
            self.parameters,
            self._supervisor.send,
            self._deadline.arm,
            self._inbox.post,
            self._timing.publish,
        )
        self._intake = CoefficientsIntake(self, self._supervisor.send)
        self._profile = ProfileAction(
            self, self._supervisor.send, self._desk, self._intake.took_over
        )
        log.info(f'engine starts: model {self.parameters.model}, interpreter {python}')
        self._supervisor.start()

    # --- goals

    def _open_server(self) -> None:
        log = self.get_logger()
        me = (self.get_name(), self.get_namespace())
        if self.get_node_names_and_namespaces().count(me) > 1:
            log.error(
                f'another node is called {self.get_fully_qualified_name()}: both will work on '
                'every query; stop one of them, or give it a namespace or ROS_DOMAIN_ID of its own'
            )
        self._server = ActionServer(
            self,
            QueryAction,
            qos.ACTION_NAME,
            execute_callback=self._desk.hand_over,
            goal_callback=guarded(log, self._on_goal, GoalResponse.REJECT),
            handle_accepted_callback=guarded(log, self._on_accepted),
            cancel_callback=guarded(log, self._on_cancel, CancelResponse.REJECT),
            feedback_pub_qos_profile=qos.feedback_qos(),
            result_timeout=qos.RESULT_TIMEOUT_S,
            **qos.service_qos(),
        )

    def _on_goal(self, _goal: QueryAction.Goal) -> GoalResponse:
        """Accept all, because a rejection cannot say why, unless the node is being stopped."""
        self._arrival_ns = time.monotonic_ns()
        return GoalResponse.REJECT if self.stop_asked else GoalResponse.ACCEPT

    def _on_accepted(self, handle: Any) -> None:
        # rclpy calls this right after _on_goal for the same goal, in the same thread.
        self._desk.accept(handle, self._arrival_ns)

    def _on_cancel(self, handle: Any) -> CancelResponse:
        # Always accepted: while CANCELING every final state is allowed, so no transition can be
        # invalid later.
        self._desk.cancel(handle)
        return CancelResponse.ACCEPT

    def _on_deadline(self) -> None:
        self._desk.end_due()

    # --- events

    def _on_event(self, event: Any) -> None:
        if isinstance(event, EngineSaid):
            self._on_engine_said(event)
        elif isinstance(event, EngineLine):
            self.get_logger().info(f'engine: {event.text}')
        elif isinstance(event, EngineLost):
            self.get_logger().error(f'{event.error_msg}; next start in {event.retry_s:g} s')
            self._loading_logged.clear()
            self._report.engine_lost()
            self._desk.engine_lost(event)
            self._intake.engine_lost()
            self._profile.engine_lost(event.error_msg)
        elif isinstance(event, GoalRecord) and event.ending is not None:
            self._report.query_ended(event.ending.outcome, event.timing.pessimistic_factor)
            self._desk.close(event)
        elif isinstance(event, _StopAsked) and not self.stop_asked:
            self.stop_asked = True
            self._profile.stop()
            self._desk.end_all(
                Ending(
                    Outcome.FAILED,
                    error_code=ErrorCode.SERVER_SHUTDOWN,
                    error_msg='the node was asked to stop',
                )
            )

    def _on_engine_said(self, event: EngineSaid) -> None:
        message = event.message
        if isinstance(message, (Progress, Planned, Finished)):
            self._desk.engine_said(event.generation, message)
        elif isinstance(message, Alive):
            self._report.engine_alive(message)
        elif isinstance(message, Loading):
            self._log_loading(message)
        elif isinstance(message, (ProfileProgress, ProfileDone)):
            self._profile.engine_said(message)
        elif isinstance(message, Ready):
            info = message.info
            self.get_logger().info(
                f'engine ready: {info.name} on {info.device} ({info.dtype}), '
                f'loaded in {message.load_s:.1f} s, '
                f'profiled in {message.profile_s:.1f} s ({message.coefficients_source})'
            )
            if unkept := self.parameters.unkept_tier(info.tiers):
                self.get_logger().warning(unkept)
            self._desk.engine_ready(event.generation, info)
            self._intake.engine_ready(event.generation, message)
            self._profile.engine_ready(event.generation, info)
            if self._server is None:
                self._open_server()

    def _log_loading(self, message: Loading) -> None:
        """Log each step once a tenth of the start: laws are measured in turns, over and over."""
        step = (message.what, int(message.fraction * 10))
        if step not in self._loading_logged:
            self._loading_logged.add(step)
            self.get_logger().info(f'engine: {message.what} ({message.fraction:.0%})')

    def _on_parameters(self, changed: list[Parameter]) -> None:
        apply_parameters(self.parameters, changed)
        self._limits.timeout_s = self.parameters.engine_timeout_s
        self._limits.start_timeout_s = self.parameters.engine_start_timeout_s

    def _publish_status(self) -> None:
        status = self._report.message(
            self._supervisor,
            self._desk.book,
            self.parameters.max_queue,
            self.parameters.pessimistic_factor,
        )
        self._status.publish(self._intake.describe(status))
        self._diagnostics.publish(
            server_diagnoses(status, self._intake.refused), self._intake.device
        )

    # --- the end

    def ask_to_stop(self) -> None:
        """Have the node end its goals and then itself; any thread may call it."""
        self._inbox.post(_StopAsked())

    @property
    def drained(self) -> bool:
        """Every ended goal's result is out."""
        return self._desk.handing_over == 0

    def close(self) -> None:
        """Stop the engine, then take the node down."""
        # Not in destroy_node: Kilted calls that for a node whose construction failed, too.
        self._supervisor.stop()
        # rclpy leaves these to us, and with them the DDS participant, which others then still see.
        self._profile.destroy()
        if self._server is not None:
            self._server.destroy()
        self.destroy_node()


def serve(node: QueryServer, executor: SingleThreadedExecutor) -> None:
    """Spin the node until it is asked to stop and the results of its goals are out."""
    log = node.get_logger()
    executor.add_node(node)
    spin_while(executor, log, lambda: not node.stop_asked)
    end_s = time.monotonic() + DRAIN_S
    spin_while(executor, log, lambda: not node.drained and time.monotonic() < end_s, LINGER_S)
    end_s = time.monotonic() + LINGER_S
    spin_while(executor, log, lambda: time.monotonic() < end_s, LINGER_S)


def main(args: list[str] | None = None, server: type[QueryServer] = QueryServer) -> int:
    """Run the node until SIGINT or SIGTERM; returns the exit status."""
    return run_node(args, lambda context: server(context=context), serve)
