# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Start the query server and the calibration node in a namespace of choice.

``ros2 launch timebill_ros timebill.launch.py --show-args`` lists what can be set.
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterFile, ParameterValue
from launch_ros.substitutions import FindPackageShare

PACKAGE = 'timebill_ros'

# Executable (as for ``ros2 run timebill_ros …``) and node name.
NODES = (
    ('query_server', 'timebill'),
    ('calibration', 'timebill_calibration'),
)


def generate_launch_description() -> LaunchDescription:
    """Return the arguments and the nodes that they configure."""
    default_params = PathJoinSubstitution([FindPackageShare(PACKAGE), 'config', 'timebill.yaml'])
    arguments = [
        DeclareLaunchArgument(
            'namespace', default_value='',
            description='Namespace of all nodes; one server per namespace'),
        DeclareLaunchArgument(
            'params_file', default_value=default_params,
            description='YAML file with the parameters of all nodes'),
        DeclareLaunchArgument(
            'use_sim_time', default_value='false', choices=['true', 'false'],
            description='Stamp /diagnostics with /clock; budgets and all else never follow it'),
        DeclareLaunchArgument(
            'log_level', default_value='info',
            description='Least severity that is logged: debug, info, warn, error or fatal'),
        DeclareLaunchArgument(
            'use_respawn', default_value='false', choices=['true', 'false'],
            description='Start a node again when its process ends unasked'),
    ]
    return LaunchDescription(arguments + [_node(executable, name) for executable, name in NODES])


def _node(executable: str, name: str) -> Node:
    use_sim_time = ParameterValue(LaunchConfiguration('use_sim_time'), value_type=bool)
    return Node(
        package=PACKAGE,
        executable=executable,
        name=name,
        namespace=LaunchConfiguration('namespace'),
        parameters=[
            ParameterFile(LaunchConfiguration('params_file'), allow_substs=True),
            {'use_sim_time': use_sim_time},
        ],
        arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
        output='screen',
        respawn=LaunchConfiguration('use_respawn'),
        respawn_delay=2.0)
