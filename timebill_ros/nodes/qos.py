# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Quality of service of everything that the node and the client library open."""

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

ACTION_NAME = 'timebill/query'
TIMING_TOPIC = 'timebill/timing'
STATUS_TOPIC = 'timebill/status'
PROFILE_ACTION_NAME = 'timebill/profile'
COEFFICIENTS_TOPIC = 'timebill/coefficients'

# How long a result waits for a client to ask for it; ours, and `ros2 action`, ask at once.
RESULT_TIMEOUT_S = 10

# The default depth of 10 loses goals, silently, when many arrive at once (18 of 200 were answered).
_SERVICE_DEPTH = 512
_FEEDBACK_DEPTH = 1024
_TIMING_DEPTH = 1024


def _reliable(depth: int, durability: DurabilityPolicy = DurabilityPolicy.VOLATILE) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=ReliabilityPolicy.RELIABLE,
        durability=durability,
    )


def service_qos() -> dict[str, QoSProfile]:
    """Return the profiles of the three services of an action, for its server and for its client."""
    return {
        'goal_service_qos_profile': _reliable(_SERVICE_DEPTH),
        'result_service_qos_profile': _reliable(_SERVICE_DEPTH),
        'cancel_service_qos_profile': _reliable(_SERVICE_DEPTH),
    }


def feedback_qos() -> QoSProfile:
    """Return the profile of feedback: reliable, deep enough for several streaming queries."""
    return _reliable(_FEEDBACK_DEPTH)


def timing_qos() -> QoSProfile:
    """Return the profile of the timing topic: a burst of queries must not lose a message."""
    return _reliable(_TIMING_DEPTH)


def status_qos() -> QoSProfile:
    """Return the profile of the status topic."""
    return _reliable(10)


def latched_qos() -> QoSProfile:
    """Return the profile of a topic whose last message a late subscriber still gets."""
    return _reliable(1, DurabilityPolicy.TRANSIENT_LOCAL)
