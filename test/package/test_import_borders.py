# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The node's side never loads torch, and the rest of the package never loads ROS."""

import ast
from pathlib import Path
import subprocess
import sys

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / 'timebill_ros'

# Whoever plans or serves imports these; the engine's own rooms are free to load torch.
NODE_SIDE = (
    'nodes', 'client.py', 'query.py', 'paths.py', 'cli', 'doctor.py', 'setup_engine.py', 'budget',
    'executor/messages.py', 'executor/supervisor.py', 'executor/engine_command.py',
    'time_estimator/laws.py', 'time_estimator/coefficients.py')
# The last three are the peer of "timebill bench node", the traffic beside it, and the robot of
# "timebill experiment".
ROS_SIDE = (
    'nodes', 'client.py', 'cli', 'experiments/bare_action.py', 'experiments/topic_load.py',
    'experiments/robot_node.py')
ROS_MODULES = {'rclpy', 'rcl_interfaces', 'builtin_interfaces', 'action_msgs', 'diagnostic_msgs',
               'unique_identifier_msgs', 'std_msgs', 'ament_index_python', 'launch', 'launch_ros'}
GENERATED = {'timebill_ros.msg', 'timebill_ros.action'}
MODEL_MODULES = ('torch', 'transformers', 'safetensors', 'gguf', 'tokenizers')


def _files(places: tuple[str, ...]) -> list[Path]:
    return [path for place in places for path in (
        sorted((PACKAGE / place).rglob('*.py')) or [PACKAGE / place])]


def _imports(path: Path) -> set[str]:
    """Return the names of the modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def test_only_nodes_client_and_command_line_import_ros() -> None:
    inside = set(_files(ROS_SIDE))
    found = {
        f'{path.relative_to(ROOT)} imports {name}'
        for path in PACKAGE.rglob('*.py') if path not in inside
        for name in _imports(path)
        if name.split('.')[0] in ROS_MODULES or name in GENERATED}
    assert not found


@pytest.mark.parametrize(
    'path', _files(NODE_SIDE), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_node_side_names_no_library_of_the_model(path: Path) -> None:
    assert not {name for name in _imports(path) if name.split('.')[0] in MODEL_MODULES}


def test_nothing_that_the_node_loads_loads_torch() -> None:
    """Import all of it in one interpreter, whatever it pulls in, and look what came along."""
    modules = ['.'.join(('timebill_ros', *path.relative_to(PACKAGE).with_suffix('').parts))
               for path in _files(NODE_SIDE) if path.stem not in ('__init__', '__main__')]
    code = (f'import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n'
            f'print(*[name for name in {MODEL_MODULES!r} if name in sys.modules])')
    done = subprocess.run(
        [sys.executable, '-c', code], cwd='/', capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ''
