# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The parameters of the node ``timebill_calibration``; all are fixed while it runs."""

from dataclasses import dataclass

from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
from rclpy.node import Node

from timebill_ros.time_estimator.tracking import TrackingConfig

_DEFAULTS = TrackingConfig()


@dataclass(frozen=True)
class CalibrationParameters:
    """The values, named as the parameters."""

    cache_dir: str
    profile_if_missing: bool
    tracking: bool
    half_life_queries: float
    republish_threshold: float
    high_drift_ratio: float

    def tracking_config(self) -> TrackingConfig:
        """Return how drift is followed."""
        return TrackingConfig(
            half_life_queries=self.half_life_queries,
            republish_threshold=self.republish_threshold,
            high_ratio=self.high_drift_ratio,
        )


def declare_parameters(node: Node) -> CalibrationParameters:
    """Declare all; raises rclpy's ParameterException, which names the parameter."""

    def declare(
        name: str,
        default: bool | float | str,
        description: str,
        limits: tuple[float, float] | None = None,
    ) -> bool | float | str:
        descriptor = ParameterDescriptor(description=description, read_only=True)
        if limits is not None:
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=limits[0], to_value=limits[1], step=0.0)
            ]
        return node.declare_parameter(name, default, descriptor).value

    return CalibrationParameters(
        cache_dir=declare(
            'cache_dir',
            '',
            "Timing profiles and tracked state, as the query server's; empty = "
            "the user's cache directory.",
        ),
        profile_if_missing=declare(
            'profile_if_missing', True, 'Ask the query server for a profile where none is stored.'
        ),
        tracking=declare(
            'tracking',
            True,
            'Follow drift; false = publish what was profiled, whatever queries take.',
        ),
        half_life_queries=declare(
            'half_life_queries',
            _DEFAULTS.half_life_queries,
            'A query weighs half as much as one so many queries newer.',
            (0.5, 1000.0),
        ),
        republish_threshold=declare(
            'republish_threshold',
            _DEFAULTS.republish_threshold,
            'Relative change of a law or of its worst case that is published.',
            (0.001, 1.0),
        ),
        high_drift_ratio=declare(
            'high_drift_ratio',
            _DEFAULTS.high_ratio,
            'Drift is called high beyond this ratio of measured to profiled, or below its inverse.',
            (1.01, 100.0),
        ),
    )
