# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The node ``timebill_calibration``: keeps the timing coefficients true, and publishes them latched.

It may be started, killed and restarted at any time: the query server goes on with what it has.
"""

import time

from rclpy.clock import Clock, ClockType
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from timebill_ros.executor.supervisor import EngineState
from timebill_ros.msg import ExecutorStatus
from timebill_ros.msg import QueryTiming as QueryTimingMsg
from timebill_ros.msg import TimingCoefficients as TimingCoefficientsMsg
from timebill_ros.nodes import qos
from timebill_ros.nodes.calibration_parameters import CalibrationParameters, declare_parameters
from timebill_ros.nodes.calibration_report import diagnoses
from timebill_ros.nodes.coefficients_topic import coefficients_from_msg, coefficients_msg
from timebill_ros.nodes.conversions import time_ns, timing_from_msg
from timebill_ros.nodes.diagnostics import Diagnostics, PERIOD_S
from timebill_ros.nodes.event_inbox import EventInbox
from timebill_ros.nodes.guarded import guarded, spin_while
from timebill_ros.nodes.profile_request import ProfileRequest
from timebill_ros.nodes.run import run_node
from timebill_ros.paths import cache_dir
from timebill_ros.query import NS_PER_S
from timebill_ros.time_estimator.calibrator import Calibrator
from timebill_ros.time_estimator.coefficients import (
    CoefficientsError,
    Drift,
    FROM_PROFILE,
    FROM_TOPIC,
)

ADOPTION_S = 5.0  # the server must plan with what is published after so long; else once more
LOG_S = 60.0  # what may come and go is logged no more often


class Calibration(Node):
    """Loads or asks for the profile of the server beside it, follows drift, publishes."""

    def __init__(self, **node_arguments: object) -> None:
        """Declare the parameters; the arguments are those of rclpy's Node."""
        super().__init__('timebill_calibration', **node_arguments)
        log = self.get_logger()
        self.parameters: CalibrationParameters = declare_parameters(self)
        self.stop_asked = False
        self._calibrator: Calibrator | None = None
        self._uncalibrated = 'the query server has not been heard of'
        self._status: ExecutorStatus | None = None
        self._status_s = 0.0  # when it came, steady clock
        self._published_s = 0.0  # when there was something new
        self._told_s = 0.0  # when it was published last
        self._not_kept = ''  # why the state could not be saved
        self._coefficients = self.create_publisher(
            TimingCoefficientsMsg, qos.COEFFICIENTS_TOPIC, qos.latched_qos()
        )
        self._diagnostics = Diagnostics(self)
        self._inbox = EventInbox(self, guarded(log, self._on_stop))
        self._profile = ProfileRequest(self, self._on_profile)
        self.create_subscription(
            ExecutorStatus, qos.STATUS_TOPIC, guarded(log, self._on_status), qos.status_qos()
        )
        self.create_subscription(
            QueryTimingMsg, qos.TIMING_TOPIC, guarded(log, self._on_timing), qos.timing_qos()
        )
        self.create_timer(
            PERIOD_S, guarded(log, self._on_timer), clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    # --- which profile

    def _on_status(self, status: ExecutorStatus) -> None:
        self._status, self._status_s = status, time.monotonic()
        key = status.coefficients_key
        if not key:
            return
        if self._calibrator is None or self._calibrator.key != key:
            self.save_state()
            self._calibrator = Calibrator(
                cache_dir(self.parameters.cache_dir),
                key,
                self.parameters.tracking_config(),
                self.parameters.tracking,
            )
            self._load(self._calibrator)
        elif self._calibrator.file_changed():
            # somebody profiled: the server at its start or when asked, or the command line
            self._load(self._calibrator)

    def _load(self, calibrator: Calibrator) -> None:
        log = self.get_logger()
        try:
            for note in calibrator.load():
                log.warning(note)
        except FileNotFoundError:
            self._uncalibrated = f'there is no profile {calibrator.path}'
            log.warning(self._uncalibrated)
        except (CoefficientsError, OSError) as error:
            self._uncalibrated = str(error)
            log.error(self._uncalibrated)
        else:
            log.info(f'profile {calibrator.path}, from {calibrator.source}')
            self._publish(calibrator)

    def _on_profile(self, message: TimingCoefficientsMsg) -> None:
        """Take in a profile that the server made on request."""
        if self._calibrator is None:
            return
        try:
            self._calibrator.adopt(coefficients_from_msg(message), FROM_PROFILE)
        except CoefficientsError as error:
            self.get_logger().error(f'the profile that was made cannot be used: {error}')
            return
        self._publish(self._calibrator)

    # --- what queries tell

    def _on_timing(self, message: QueryTimingMsg) -> None:
        calibrator = self._calibrator
        if calibrator is None or calibrator.tracker is None:
            return
        before = calibrator.tracker.drift_state
        if calibrator.observe(timing_from_msg(message), time.time_ns()):
            self._publish(calibrator)
        now = calibrator.tracker.drift_state
        if now != before and Drift.HIGH in (now, before):
            self.get_logger().warning(
                f'drift is {now.name}: queries take {calibrator.tracker.drift_ratio:.2f} times '
                'as long as profiled',
                throttle_duration_sec=LOG_S,
            )

    def _publish(self, calibrator: Calibrator) -> None:
        assert calibrator.current is not None and calibrator.tracker is not None
        # kept before it is told: a restarted node must not take back what the server plans with
        self.save_state()
        self._published_s = time.monotonic()
        self._tell(calibrator)

    def _tell(self, calibrator: Calibrator) -> None:
        assert calibrator.current is not None and calibrator.tracker is not None
        self._told_s = time.monotonic()
        self._coefficients.publish(
            coefficients_msg(calibrator.current, calibrator.source, calibrator.tracker.levels())
        )

    def save_state(self, at_once: bool = True) -> None:
        """Keep what was tracked for the next process; where that is impossible, say so once."""
        if self._calibrator is None:
            return
        try:
            self._calibrator.save_state(time.monotonic(), at_once)
            self._not_kept = ''
        except OSError as error:
            if str(error) != self._not_kept:
                self._not_kept = str(error)
                self.get_logger().warning(f'tracked drift will not outlive this process: {error}')

    # --- once a second

    def _on_timer(self) -> None:
        calibrator = self._calibrator
        if calibrator is not None:
            self.save_state(at_once=False)
            if calibrator.current is None and self.parameters.profile_if_missing:
                self._profile.send_when_due(time.monotonic())
        not_adopted = self._not_adopted()
        if calibrator is not None and not_adopted and (
            self._status_s - self._told_s >= ADOPTION_S
        ):
            self.get_logger().warning(
                f'the server plans with other coefficients ({not_adopted}); published again',
                throttle_duration_sec=LOG_S,
            )
            self._tell(calibrator)
        self._diagnostics.publish(
            diagnoses(calibrator, self._uncalibrated, self._profile.state, not_adopted),
            '' if calibrator is None or calibrator.current is None else calibrator.current.device,
        )

    def _not_adopted(self) -> str:
        """Return with what the server plans instead of what is published; '' = it does not."""
        calibrator, status = self._calibrator, self._status
        if (
            calibrator is None
            or calibrator.current is None
            or status is None
            or status.engine_state != EngineState.READY  # it adopts once its engine is back
            or self._status_s - self._published_s < ADOPTION_S
        ):
            return ''
        stamp_ns = time_ns(status.coefficients_stamp)
        if status.coefficients_source == FROM_TOPIC and stamp_ns == calibrator.current.stamp_ns:
            return ''
        others = self.count_publishers(qos.COEFFICIENTS_TOPIC) - 1
        rival = f'; other nodes that publish: {others}' if others else ''
        return f'source {status.coefficients_source}, stamp {stamp_ns / NS_PER_S:.3f}{rival}'

    # --- the end

    def close(self) -> None:
        """Keep what was tracked, then take the node down."""
        # Not in destroy_node: Kilted calls that for a node whose construction failed, too.
        self.save_state()
        self._profile.destroy()  # rclpy leaves it to us
        self.destroy_node()

    def ask_to_stop(self) -> None:
        """Have the node end; any thread may call it."""
        self._inbox.post(None)

    def _on_stop(self, _event: object) -> None:
        self.stop_asked = True


def serve(node: Calibration, executor: SingleThreadedExecutor) -> None:
    """Spin the node until it is asked to stop."""
    executor.add_node(node)
    spin_while(executor, node.get_logger(), lambda: not node.stop_asked)


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; returns the exit status."""
    return run_node(args, lambda context: Calibration(context=context), serve)
