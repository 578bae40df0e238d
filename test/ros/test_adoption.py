# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The query server, with its engine: what it plans with, and how it is profiled."""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from math import nan
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from linked_cache import linked_cache
import pytest
import rclpy
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from ros.robot import Process

from timebill_ros.action import Profile
from timebill_ros.cli import profile as profile_command
from timebill_ros.client import TimeBillClient
from timebill_ros.msg import ExecutorStatus
from timebill_ros.msg import TimingCoefficients as TimingCoefficientsMsg
from timebill_ros.nodes import qos
from timebill_ros.nodes.coefficients_topic import coefficients_from_msg, coefficients_msg
from timebill_ros.nodes.conversions import time_ns
from timebill_ros.paths import cache_dir
from timebill_ros.query import ErrorCode, Outcome
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.profile_file import load_for, profile_path

READY_S = 240.0     # a first start converts the model and measures it
SOON_S = 30.0

pytestmark = pytest.mark.usefixtures('ros_domain')


class Peer:
    """A calibration node's voice, and a client of both actions."""

    def __init__(self, cache: Path) -> None:
        self.client = TimeBillClient()
        self.status = ExecutorStatus()
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context)
        self._node = Node('peer', context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._publisher = self._node.create_publisher(
            TimingCoefficientsMsg, qos.COEFFICIENTS_TOPIC, qos.latched_qos())
        self._node.create_subscription(
            ExecutorStatus, qos.STATUS_TOPIC, self._on_status, qos.status_qos())
        self._profile = ActionClient(
            self._node, Profile, qos.PROFILE_ACTION_NAME, **qos.service_qos())
        self.feedback: list[Profile.Feedback] = []
        self.wait_for(lambda: self.status.coefficients_key, READY_S)
        self.key = self.status.coefficients_key
        self.path = profile_path(cache, self.key)
        self.stored = load_for(self.path, self.key)

    def _on_status(self, message: ExecutorStatus) -> None:
        self.status = message

    def wait_for(self, condition: Any, within_s: float = SOON_S) -> None:
        end_s = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < end_s, 'it did not happen'
            self._executor.spin_once(timeout_sec=0.1)

    def publish(self, message: TimingCoefficientsMsg) -> None:
        self._publisher.publish(message)

    def publish_and_see(self, coefficients: TimingCoefficients) -> None:
        """Publish, and wait until the server says that it plans with them."""
        self.publish(coefficients_msg(coefficients, 'tracked'))
        self.wait_for(lambda: time_ns(self.status.coefficients_stamp) == coefficients.stamp_ns)

    def start_profile(self, **goal: int) -> Any:
        """Return the handle of a goal of timebill/profile."""
        assert self._profile.wait_for_server(SOON_S)
        self.feedback.clear()
        future = self._profile.send_goal_async(
            Profile.Goal(**goal), feedback_callback=lambda each: self.feedback.append(
                each.feedback))
        self.wait_for(future.done)
        return future.result()

    def result(self, handle: Any) -> Profile.Result:
        future = handle.get_result_async()
        self.wait_for(future.done, 120.0)
        return future.result().result

    def close(self) -> None:
        self.client.close()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)


@pytest.fixture(scope='module')
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache directory with this machine's converted model, and profiles to spoil."""
    made, profiles = linked_cache(tmp_path_factory.mktemp('cache')), cache_dir() / 'profiles'
    if profiles.is_dir():
        shutil.copytree(profiles, made / 'profiles')
    return made


@pytest.fixture(scope='module')
def server(ros_domain: int, cache: Path) -> Iterator[Process]:
    with Process('query_server', cache) as node:
        yield node


@pytest.fixture(scope='module')
def peer(server: Process, cache: Path) -> Iterator[Peer]:
    made = Peer(cache)
    # As it was measured, for the servers of other tests, before it is spoiled here.
    shutil.copytree(cache / 'profiles', cache_dir() / 'profiles', dirs_exist_ok=True)
    yield made
    made.close()


def planned_with(peer: Peer) -> tuple[str, int, list[float]]:
    """Return source, stamp and prefill law that a query was planned with."""
    timing = peer.client.ask('Hello!', within=30.0, max_new_tokens=2).timing
    return timing.coefficients_source, timing.coefficients_stamp_ns, timing.law_prefill


def test_before_anything_is_published_queries_are_planned_with_the_file(peer: Peer) -> None:
    source, stamp_ns, law = planned_with(peer)
    assert source in ('file', 'profile')
    assert stamp_ns == peer.stored.stamp_ns
    assert law == list(peer.stored.law('prefill', 'fp32').coefficients)


def test_what_is_published_is_adopted_and_named_in_the_timing(peer: Peer) -> None:
    slower = replace(
        peer.stored, stamp_ns=peer.stored.stamp_ns + 1,
        laws=tuple(law.scaled(3.0) for law in peer.stored.laws))
    peer.publish_and_see(slower)
    assert planned_with(peer) == (
        'topic', slower.stamp_ns, list(slower.law('prefill', 'fp32').coefficients))


def test_what_cannot_be_valid_is_refused_and_the_last_good_ones_stay(
        peer: Peer, server: Process) -> None:
    good = replace(peer.stored, stamp_ns=peer.stored.stamp_ns + 2)
    peer.publish_and_see(good)
    foreign = replace(good, device='another robot', stamp_ns=good.stamp_ns + 1)
    bad = [coefficients_msg(foreign, 'profile') for _ in range(3)]
    for value in (nan, -1.0):
        message = coefficients_msg(replace(good, stamp_ns=good.stamp_ns + 1), 'tracked')
        message.laws[0].coefficients = [value, *message.laws[0].coefficients[1:]]
        bad.append(message)
    contradictory = coefficients_msg(good, 'tracked')
    contradictory.key = foreign.key
    bad.append(contradictory)
    for message in bad:
        peer.publish(message)
        peer.wait_for(lambda: not peer.status.queue_depth)
        time.sleep(0.2)     # depth 1: the next message would replace one not yet read
    assert planned_with(peer)[:2] == ('topic', good.stamp_ns)
    warnings = [line for line in server.lines if 'are refused' in line]
    assert sum(foreign.key in line and peer.key in line for line in warnings) == 2
    assert sum('not all finite and >= 0' in line for line in warnings) == 2


@pytest.mark.parametrize(('goal', 'field'), [
    ({'max_tokens': 10**6}, 'max_tokens'), ({'max_tokens': 1}, 'max_tokens'),
    ({'repeats': 10**6}, 'repeats'), ({'when_busy': 7}, 'when_busy')])
def test_a_profile_out_of_its_limits_is_refused(
        peer: Peer, goal: dict[str, int], field: str) -> None:
    result = peer.result(peer.start_profile(**goal))
    assert result.error_code == Profile.Result.INVALID_FIELD
    assert field in result.error_msg


def test_a_profile_refuses_while_queries_run_or_waits_for_their_end(peer: Peer) -> None:
    heard: list[Any] = []       # not the status: an answer may be over before the next one
    asked = peer.client.ask_async(
        'Write a long story about a robot that learns to cook, in every detail.', within=60.0,
        max_new_tokens=400, on_feedback=heard.append)
    peer.wait_for(lambda: heard)
    refused = peer.result(peer.start_profile())
    assert refused.error_code == Profile.Result.BUSY and refused.error_msg
    handle = peer.start_profile(
        max_tokens=64, repeats=1, when_busy=Profile.Goal.BUSY_DRAIN)
    late = peer.client.ask('Hello!', within=20.0)
    assert (late.outcome, late.error_code) == (Outcome.FAILED, ErrorCode.ENGINE_NOT_READY)
    assert 'profile' in late.error_msg
    result = peer.result(handle)
    assert result.error_code == Profile.Result.NONE, result.error_msg
    assert asked.result(1.0).outcome == Outcome.COMPLETED
    assert peer.feedback and all(each.done <= each.total for each in peer.feedback)
    fitted = coefficients_from_msg(result.coefficients)
    assert load_for(Path(result.path), peer.key).to_dict() == fitted.to_dict()
    assert planned_with(peer)[:2] == ('profile', fitted.stamp_ns)


def test_a_profile_can_be_canceled_and_changes_nothing(peer: Peer) -> None:
    before = planned_with(peer)
    handle = peer.start_profile()
    peer.wait_for(lambda: peer.feedback)
    again = peer.result(peer.start_profile())
    assert again.error_code == Profile.Result.BUSY
    handle.cancel_goal_async()
    assert peer.result(handle).error_code == Profile.Result.CANCELED_BY_CLIENT
    assert planned_with(peer) == before


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command_line_cancels_its_profile(
        peer: Peer, number: signal.Signals) -> None:
    code = 'import sys; from timebill_ros.cli import main; sys.exit(main(sys.argv[1:]))'
    command = subprocess.Popen(
        [sys.executable, '-c', code, 'profile', '--server'], cwd='/', text=True,
        stderr=subprocess.PIPE)
    assert command.stderr is not None and 'measured' in command.stderr.readline()
    command.send_signal(number)
    with command:
        assert command.wait(SOON_S) == 130
    assert planned_with(peer)       # refused while a profile is made


def test_a_profile_ends_with_its_engine(peer: Peer, server: Process) -> None:
    handle = peer.start_profile()
    peer.wait_for(lambda: peer.feedback)
    server.kill_engine()
    result = peer.result(handle)
    assert result.error_code == Profile.Result.PROFILE_FAILED and result.error_msg


@pytest.mark.parametrize('given', [
    ['--repeats', '-1'], ['--repeats', '1001'], ['--max-tokens', '63'], ['--threads', 'two']])
def test_the_command_line_refuses_what_cannot_be_measured(
        given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    profile_command.add_arguments(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(given)
    assert given[0] in capsys.readouterr().err
