# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The other side of the calibration node: speaks for a query server, and hears what comes."""

from collections.abc import Callable
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
import rclpy
from rclpy.action import ActionServer
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from timebill_ros.action import Profile
from timebill_ros.executor.supervisor import EngineState
from timebill_ros.msg import DecodeStretch, ExecutorStatus, QueryTiming, TimingCoefficients
from timebill_ros.nodes import qos
from timebill_ros.nodes.coefficients_topic import coefficients_from_msg, coefficients_msg
from timebill_ros.nodes.conversions import time_msg
from timebill_ros.time_estimator import coefficients as stored
from timebill_ros.time_estimator.coefficients import FROM_FILE, FROM_PROFILE, FROM_TOPIC

SOON_S = 20.0
_NODE = 'import sys; from timebill_ros.nodes.{module} import main; sys.exit(main(sys.argv[1:]))'


def children_of(process: int) -> set[int]:
    """Return the ids of the processes that a process started."""
    return {int(each) for task in Path(f'/proc/{process}/task').iterdir()
            for each in (task / 'children').read_text().split()}


class Process:
    """A node in a process of its own, and what it logs."""

    def __init__(self, module: str, cache: Path, *parameters: str) -> None:
        given = [word for each in parameters for word in ('-p', each)]
        self._process = subprocess.Popen(
            [sys.executable, '-c', _NODE.format(module=module), '--ros-args', *given], cwd='/',
            env={**os.environ, 'TIMEBILL_CACHE_DIR': str(cache)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def log(self) -> str:
        return '\n'.join(self.lines)

    def status(self, within_s: float = SOON_S) -> int:
        """Return the exit status once it has ended by itself."""
        status = self._process.wait(within_s)
        self._reader.join(5.0)
        return status

    def children(self) -> set[int]:
        """Return the ids of the processes that it started."""
        return children_of(self._process.pid)

    def kill_engine(self) -> None:
        """End the engine process of a query server with SIGKILL."""
        for child in self.children():
            os.kill(child, signal.SIGKILL)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self._process.send_signal(number)
        return self.status()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend(line.rstrip() for line in self._process.stdout)

    def __enter__(self) -> 'Process':
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.end(signal.SIGKILL)


class Robot:
    """
    Says what a query server with this key would say, once it is told to.

    ``slow``: how much slower than ``profile`` its queries are.
    """

    def __init__(self, profile: stored.TimingCoefficients) -> None:
        self.profile = profile
        self.coefficients: list[stored.TimingCoefficients] = []
        self.diagnostics: dict[str, DiagnosticStatus] = {}
        self.profiles_asked = 0
        self.strange_stamp_ns = 0       # of a stranger's coefficients that it plans with; 0 = none
        self._profiles: ActionServer | None = None
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context)
        self._node = Node('robot', context=self._context)
        self._node.create_subscription(
            TimingCoefficients, qos.COEFFICIENTS_TOPIC,
            lambda each: self.coefficients.append(coefficients_from_msg(each)), qos.latched_qos())
        self._node.create_subscription(
            DiagnosticArray, '/diagnostics',
            lambda each: self.diagnostics.update({one.name: one for one in each.status}), 10)
        self._status = self._node.create_publisher(
            ExecutorStatus, qos.STATUS_TOPIC, qos.status_qos())
        self._timing = self._node.create_publisher(
            QueryTiming, qos.TIMING_TOPIC, qos.timing_qos())
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def say_status(self) -> None:
        newest = self.coefficients[-1] if self.coefficients else self.profile
        self._status.publish(ExecutorStatus(
            engine_state=EngineState.READY,
            coefficients_key=self.profile.key,
            coefficients_source=FROM_TOPIC if self.coefficients else FROM_FILE,
            coefficients_stamp=time_msg(self.strange_stamp_ns or newest.stamp_ns)))

    def serve_profiles(self) -> None:
        """Answer goals of timebill/profile with the profile."""
        def execute(handle: Any) -> Profile.Result:
            self.profiles_asked += 1
            handle.publish_feedback(Profile.Feedback(stage='prefill', done=1, total=2))
            handle.succeed()
            return Profile.Result(coefficients=coefficients_msg(self.profile, FROM_PROFILE))
        self._profiles = ActionServer(
            self._node, Profile, qos.PROFILE_ACTION_NAME, execute, **qos.service_qos())

    def answer_query(self, slow: float) -> None:
        """Tell of a query that took ``slow`` times what the profile says."""
        n_prompt, n = 300, 60
        prefill, step = self.profile.law('prefill', ''), self.profile.law('decode_step', '')
        decode_s = slow * step.sum_steps(n_prompt, n - 1)
        self._timing.publish(QueryTiming(
            outcome=1, n_prompt=n_prompt, n_kept=n_prompt, n_generated=n,
            prefill=slow * prefill.seconds(n_prompt),
            decode=decode_s, stretches=[DecodeStretch(
                tier='fp32', width=1, n_cached=float(n_prompt), steps=n - 1, seconds=decode_s)],
            coefficients_source=FROM_TOPIC,
            coefficients_stamp=time_msg(self.coefficients[-1].stamp_ns)))

    def wait_for(self, condition: Callable[[], object], within_s: float = SOON_S) -> None:
        """Wait for it, saying the status meanwhile as a server does."""
        end_s = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < end_s, 'it did not happen'
            self.say_status()
            time.sleep(0.1)

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join(5.0)
        if self._profiles is not None:
            self._profiles.destroy()        # rclpy leaves it to us
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)
