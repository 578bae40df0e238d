# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The calibration node in a process of its own, over DDS, beside a query server's voice."""

from collections.abc import Iterator
from dataclasses import replace
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from diagnostic_msgs.msg import DiagnosticStatus
import pytest
from ros.robot import children_of, Process, Robot, SOON_S

from timebill_ros.cli import calibration_process
from timebill_ros.time_estimator.coefficients import Drift, save, TimingCoefficients
from timebill_ros.time_estimator.laws import AFFINE, DECODE_STEP, Law, PREFILL, QUADRATIC
from timebill_ros.time_estimator.profile_file import profile_path

BASE = TimingCoefficients(1_700_000_000_000_000_000, 'a robot', 'a model', 'float32', '1', (
    Law(PREFILL, QUADRATIC, (1e-8, 1e-3, 0.01), worst_ratio=1.1, mape=0.01, samples=40),
    Law(DECODE_STEP, AFFINE, (1e-5, 0.02), worst_ratio=1.2, mape=0.02, samples=50)))
DRIFT, COEFFICIENTS = 'timebill_calibration: drift', 'timebill_calibration: coefficients'
LATE_JOINER = """
import time, rclpy
from rclpy.node import Node
from timebill_ros.msg import TimingCoefficients
from timebill_ros.nodes import qos
rclpy.init()
node, heard = Node('late'), []
node.create_subscription(
    TimingCoefficients, qos.COEFFICIENTS_TOPIC, heard.append, qos.latched_qos())
end = time.monotonic() + 10
while not heard and time.monotonic() < end:
    rclpy.spin_once(node, timeout_sec=0.1)
print(heard[0].key, heard[0].stamp.sec, sep='@')
"""
BESIDE_A_SERVER = """
import sys
from timebill_ros.cli.calibration_process import CalibrationProcess
with CalibrationProcess([]):
    sys.stdin.read()
"""

pytestmark = pytest.mark.usefixtures('ros_domain')


@pytest.fixture
def robot() -> Iterator[Robot]:
    made = Robot(BASE)
    yield made
    made.close()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return a cache directory with the profile BASE."""
    save(profile_path(tmp_path, BASE.key), BASE)
    return tmp_path


def level(robot: Robot, task: str) -> bytes | None:
    return robot.diagnostics[task].level if task in robot.diagnostics else None


def slow_down(robot: Robot, slow: float, queries: int = 20) -> None:
    """Have the robot answer queries one after the other, each after the node heard the last."""
    for _ in range(queries):
        robot.answer_query(slow)
        time.sleep(0.02)


def test_the_stored_profile_is_published_and_a_late_joiner_has_it_at_once(
        robot: Robot, cache: Path) -> None:
    with Process('calibration', cache) as node:
        robot.wait_for(lambda: robot.coefficients)
        assert robot.coefficients == [BASE]
        late = subprocess.run(
            [sys.executable, '-c', LATE_JOINER], cwd='/', capture_output=True, text=True,
            timeout=30)
        assert late.stdout.strip() == f'{BASE.key}@1700000000', late.stderr
        robot.wait_for(lambda: level(robot, DRIFT) == level(robot, COEFFICIENTS) == (
            DiagnosticStatus.OK))
        newer = replace(BASE, stamp_ns=BASE.stamp_ns + 1)
        save(profile_path(cache, BASE.key), newer)
        robot.wait_for(lambda: robot.coefficients == [BASE, newer])
        assert node.end() == 0


def test_drift_moves_the_coefficients_and_is_told_and_a_killed_node_takes_nothing_back(
        robot: Robot, cache: Path) -> None:
    with Process('calibration', cache) as node:
        robot.wait_for(lambda: robot.coefficients)
        slow_down(robot, 2.0)
        robot.wait_for(lambda: level(robot, DRIFT) == DiagnosticStatus.WARN)
        newest = robot.coefficients[-1]
        assert newest.drift_state == Drift.HIGH
        for law, base in zip(newest.laws, BASE.laws):
            assert law.seconds(100) == pytest.approx(2.0 * base.seconds(100), rel=0.05)
        node.end(signal.SIGKILL)
    heard = len(robot.coefficients)
    with Process('calibration', cache):
        robot.wait_for(lambda: len(robot.coefficients) > heard)
        assert robot.coefficients[-1] == newest
        slow_down(robot, 1.0)
        robot.wait_for(lambda: level(robot, DRIFT) == DiagnosticStatus.OK)
        for law, base in zip(robot.coefficients[-1].laws, BASE.laws):
            assert law.seconds(100) == pytest.approx(base.seconds(100), rel=0.05)


def test_a_server_that_plans_with_a_strangers_coefficients_is_told_again(
        robot: Robot, cache: Path) -> None:
    with Process('calibration', cache) as node:
        robot.wait_for(lambda: robot.coefficients)
        robot.strange_stamp_ns = 1
        robot.wait_for(lambda: robot.coefficients == [BASE, BASE])
        assert level(robot, COEFFICIENTS) == DiagnosticStatus.WARN
        robot.strange_stamp_ns = 0
        robot.wait_for(lambda: level(robot, COEFFICIENTS) == DiagnosticStatus.OK)
        assert node.log.count('published again') == 1


def test_where_nothing_can_be_kept_drift_is_told_all_the_same(robot: Robot, cache: Path) -> None:
    (cache / 'state').symlink_to(cache / 'nowhere')
    with Process('calibration', cache) as node:
        robot.wait_for(lambda: robot.coefficients)
        slow_down(robot, 2.0)
        robot.wait_for(lambda: level(robot, DRIFT) == DiagnosticStatus.WARN)
        assert robot.coefficients[-1].drift_state == Drift.HIGH
        assert node.end() == 0
        assert node.log.count('will not outlive') == 1 and 'Traceback' not in node.log


@pytest.mark.parametrize('content', [b'not a profile', None])
def test_a_bad_profile_is_kept_aside_and_a_new_one_asked_for(
        robot: Robot, tmp_path: Path, content: bytes | None) -> None:
    path = profile_path(tmp_path, BASE.key)
    foreign = TimingCoefficients(1, 'another robot', 'a model', 'float32', '1', BASE.laws)
    save(path, foreign)
    if content is not None:
        path.write_bytes(content)
    with Process('calibration', tmp_path) as node:
        robot.wait_for(lambda: level(robot, COEFFICIENTS) == DiagnosticStatus.ERROR and (
            'kept aside' in robot.diagnostics[COEFFICIENTS].message))
        assert not robot.coefficients
        robot.serve_profiles()
        robot.wait_for(lambda: robot.coefficients)
        assert (robot.coefficients, robot.profiles_asked) == ([BASE], 1)
        robot.wait_for(lambda: level(robot, COEFFICIENTS) == DiagnosticStatus.OK)
        if content is None:
            assert foreign.key in node.log and BASE.key in node.log
    assert path.with_name(path.name + '.bad').exists()


def test_before_a_server_is_heard_of_there_is_nothing_to_publish(
        robot: Robot, cache: Path) -> None:
    with Process('calibration', cache):
        end_s = time.monotonic() + 20.0
        while level(robot, COEFFICIENTS) != DiagnosticStatus.ERROR:
            assert time.monotonic() < end_s
            time.sleep(0.1)
        assert 'not been heard of' in robot.diagnostics[COEFFICIENTS].message
        assert not robot.coefficients


def test_a_parameter_out_of_its_range_ends_the_node_with_its_name(cache: Path) -> None:
    with Process('calibration', cache, 'high_drift_ratio:=0.5') as node:
        assert node.status() == 2
        assert 'high_drift_ratio' in node.log


def test_beside_a_server_wrong_parameters_end_it_for_good(
        cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv('TIMEBILL_CACHE_DIR', str(cache))
    monkeypatch.setattr(calibration_process, 'RESTART_S', 0.01)
    told, end_s = '', time.monotonic() + SOON_S
    with calibration_process.CalibrationProcess(['--ros-args', '-p', 'high_drift_ratio:=0.5']):
        while 'high_drift_ratio' not in told and time.monotonic() < end_s:
            time.sleep(0.05)
            told += capfd.readouterr().err
        time.sleep(1.5)     # it would be there again
    told += capfd.readouterr().err
    assert told.count('Invalid parameter value') == 1 and 'Fatal' not in told


def test_beside_a_server_it_is_started_again_and_ends_with_it(robot: Robot, cache: Path) -> None:
    with subprocess.Popen(
            [sys.executable, '-c', BESIDE_A_SERVER], cwd='/', stdin=subprocess.PIPE,
            env={**os.environ, 'TIMEBILL_CACHE_DIR': str(cache)}) as server:
        robot.wait_for(lambda: robot.coefficients)
        first, = children_of(server.pid)
        os.kill(first, signal.SIGKILL)
        robot.wait_for(lambda: len(robot.coefficients) > 1)
        second, = children_of(server.pid)
        assert second != first and robot.coefficients == [BASE, BASE]
        server.kill()
    robot.wait_for(lambda: not Path(f'/proc/{second}/cmdline').exists()
                   or not Path(f'/proc/{second}/cmdline').read_bytes())
