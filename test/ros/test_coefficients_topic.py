# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Every number of the estimator goes through the message and back, and no other gets in."""

from collections.abc import Callable
from math import inf, nan

import pytest

from timebill_ros.msg import TimingCoefficients as TimingCoefficientsMsg
from timebill_ros.nodes.coefficients_topic import coefficients_from_msg, coefficients_msg
from timebill_ros.time_estimator.coefficients import (
    CoefficientsError, Drift, FROM_PROFILE, TimingCoefficients)
from timebill_ros.time_estimator.laws import (
    AFFINE, CONSTANT, DECODE_STEP, EVICT, Law, OVERHEAD, PIECEWISE, PREFILL, QUADRATIC, RECOVERY,
    SATURATING)

COEFFICIENTS = TimingCoefficients(
    1_700_000_000_123_456_789, 'a robot', 'a model', 'bfloat16', '1.2', (
        Law(PREFILL, QUADRATIC, (1e-8, 1e-3, 0.01), (), 'bf16', 1.07, 0.012, 240),
        Law(DECODE_STEP, PIECEWISE, (0.02, 0.02, 0.05), (16.0, 512.0, 4096.0), 'bf16', 1.2),
        Law(DECODE_STEP, AFFINE, (1e-6, 0.01), (), 'int8', 1.3, 0.004, 99, 4, 0.25),
        Law(EVICT, AFFINE, (1e-6, 0.0)), Law(OVERHEAD, CONSTANT, (0.004,)),
        Law(RECOVERY, SATURATING, (1e-3, 2e-3, 3e-3, 3e-3), (8192.0, 8.0, 24.0, 48.0), 'bf16')),
    0.995, Drift.TRACKED, 1.21)
RATIOS = {(PREFILL, 'bf16', 1): 1.21}

Change = Callable[[TimingCoefficientsMsg], object]


def set_law(name: str, value: object) -> Change:
    return lambda message: setattr(message.laws[0], name, value)


def test_everything_comes_back() -> None:
    message = coefficients_msg(COEFFICIENTS, FROM_PROFILE, RATIOS)
    assert coefficients_from_msg(message).to_dict() == COEFFICIENTS.to_dict()
    assert (message.source, message.key) == (FROM_PROFILE, COEFFICIENTS.key)
    assert [law.drift_ratio for law in message.laws] == [1.21, 1.0, 1.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(('change', 'told'), [
    (set_law('coefficients', [nan, 0.0, 0.0]), 'prefill'),
    (set_law('coefficients', [inf, 0.0, 0.0]), 'prefill'),
    (set_law('coefficients', [0.0, -1e-9, 0.0]), 'prefill'),
    (set_law('coefficients', [0.0]), 'prefill'),
    (set_law('worst_ratio', 0.5), 'worst_ratio'),
    (set_law('worst_ratio', nan), 'worst_ratio'),
    (set_law('form', 'cubic'), 'cubic'),
    (set_law('law', 'dance'), 'dance'),
    (lambda message: setattr(message.laws[-1], 'coefficients', [1e-3, 2e-3, 3e-3, 1e-3]), RECOVERY),
    (lambda message: setattr(message.laws[-1], 'knots', [8192.0, 24.0, 8.0, 48.0]), RECOVERY),
    (set_law('knots', [1.0]), 'knots'),
    (lambda message: message.laws.clear(), 'missing'),
    (lambda message: message.laws.append(message.laws[0]), 'twice'),
    (lambda message: setattr(message, 'key', 'another'), 'another'),
    (lambda message: setattr(message, 'device', 'another'), 'another'),
    (lambda message: setattr(message, 'worst_quantile', 0.0), 'worst_quantile'),
    (lambda message: setattr(message, 'drift_state', 7), '7'),
    (lambda message: setattr(message, 'drift_ratio', nan), 'drift_ratio')])
def test_what_cannot_be_planned_with_is_refused_by_name(change: Change, told: str) -> None:
    message = coefficients_msg(COEFFICIENTS, FROM_PROFILE)
    change(message)
    with pytest.raises(CoefficientsError, match=told):
        coefficients_from_msg(message)
