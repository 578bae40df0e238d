# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The launch file starts both nodes where and how its arguments say, and they end cleanly."""

from collections.abc import Iterator
from pathlib import Path
import time
from typing import Any

from ament_index_python.packages import get_package_share_directory
import pytest
from rcl_interfaces.srv import GetParameters
import rclpy
from rclpy.node import Node

from timebill_ros.client import TimeBillClient
from timebill_ros.query import Outcome

_REASON = 'launch_pytest comes with a ROS 2 installation and is not on PyPI'
launch = pytest.importorskip('launch', reason=_REASON)
launch_pytest = pytest.importorskip('launch_pytest', reason=_REASON)
sources = pytest.importorskip('launch.launch_description_sources', reason=_REASON)

NAMESPACE = 'arm'
MAX_QUEUE = 3
# The first start converts and measures the model.
START_S = 240.0
SEEN_S = 30.0

pytestmark = pytest.mark.usefixtures('ros_domain')


def _launch_file() -> Path:
    return Path(get_package_share_directory('timebill_ros'), 'launch', 'timebill.launch.py')


@pytest.fixture
def exits() -> dict[str, int]:
    """Collect the exit statuses of the launched processes, by executable."""
    return {}


@launch_pytest.fixture
def launched(tmp_path: Path, exits: dict[str, int]) -> Any:
    """Launch into a namespace, with parameters that differ from the defaults."""
    params_file = tmp_path / 'arm.yaml'
    params_file.write_text(f'/**:\n  ros__parameters:\n    max_queue: {MAX_QUEUE}\n')
    include = launch.actions.IncludeLaunchDescription(
        sources.PythonLaunchDescriptionSource(str(_launch_file())),
        launch_arguments={'namespace': NAMESPACE, 'params_file': str(params_file),
                          'use_sim_time': 'true', 'log_level': 'warn'}.items())

    def note_exit(event: Any, _context: Any) -> None:
        exits[event.process_name.partition('-')[0]] = event.returncode

    return launch.LaunchDescription([
        include,
        launch.actions.RegisterEventHandler(
            launch.event_handlers.OnProcessExit(on_exit=note_exit)),
        launch_pytest.actions.ReadyToTest()])


@pytest.fixture
def node() -> Iterator[Node]:
    """Make a node to look around with."""
    rclpy.init()
    node = rclpy.create_node('onlooker')
    yield node
    node.destroy_node()
    rclpy.shutdown()


def test_every_argument_is_described() -> None:
    described = sources.PythonLaunchDescriptionSource(str(_launch_file()))
    description = described.get_launch_description(launch.LaunchContext())
    arguments = {argument.name: argument for argument in description.get_launch_arguments()}
    assert set(arguments) == {
        'namespace', 'params_file', 'use_sim_time', 'log_level', 'use_respawn'}
    assert all(len(argument.description) > 20 for argument in arguments.values())
    assert all(argument.default_value is not None for argument in arguments.values())


@pytest.mark.launch(fixture=launched)
def test_both_nodes_serve_in_their_namespace(node: Node, exits: dict[str, int]) -> Iterator[None]:
    _ask_a_question()
    _find_both_nodes(node)
    _check_parameters(node)
    yield   # here launch ends what it started
    assert exits == {'query_server': 0, 'calibration': 0}


def _ask_a_question() -> None:
    with TimeBillClient(namespace=NAMESPACE) as client:
        assert client.wait_for_server(START_S)
        answer = client.ask('What is the capital of France?', within=60.0, max_new_tokens=8)
    assert answer.outcome in (Outcome.COMPLETED, Outcome.TRUNCATED)


def _find_both_nodes(node: Node) -> None:
    expected = {f'/{NAMESPACE}/timebill', f'/{NAMESPACE}/timebill_calibration'}
    names: set[str] = set()
    end_s = time.monotonic() + SEEN_S
    while not expected <= names and time.monotonic() < end_s:
        rclpy.spin_once(node, timeout_sec=0.1)
        names = {f'{space.rstrip("/")}/{name}'
                 for name, space in node.get_node_names_and_namespaces()}
    assert expected <= names


def _check_parameters(node: Node) -> None:
    client = node.create_client(GetParameters, f'/{NAMESPACE}/timebill/get_parameters')
    assert client.wait_for_service(SEEN_S)
    asked = client.call_async(GetParameters.Request(names=['max_queue', 'use_sim_time']))
    rclpy.spin_until_future_complete(node, asked, timeout_sec=SEEN_S)
    max_queue, use_sim_time = asked.result().values
    assert max_queue.integer_value == MAX_QUEUE
    assert use_sim_time.bool_value is True
