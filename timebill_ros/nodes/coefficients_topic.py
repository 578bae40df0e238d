# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The timing coefficients as the message of the topic ``timebill/coefficients``, and back."""

from collections.abc import Mapping

from timebill_ros.msg import TimingCoefficients as TimingCoefficientsMsg
from timebill_ros.msg import TimingLaw
from timebill_ros.nodes.conversions import time_msg, time_ns
from timebill_ros.time_estimator.coefficients import CoefficientsError, Drift, TimingCoefficients
from timebill_ros.time_estimator.laws import Law


def coefficients_msg(
    coefficients: TimingCoefficients,
    source: str,
    drift_ratios: Mapping[tuple[str, str, int], float] | None = None,
) -> TimingCoefficientsMsg:
    """
    Return the message that holds everything the estimator is made of.

    ``source``: "profile", "file" or "tracked"; ``drift_ratios``: by (law, tier, width), if tracked.
    """
    ratios = drift_ratios or {}
    return TimingCoefficientsMsg(
        stamp=time_msg(coefficients.stamp_ns),
        key=coefficients.key,
        device=coefficients.device,
        model=coefficients.model,
        dtype=coefficients.dtype,
        engine_version=coefficients.engine_version,
        source=source,
        worst_quantile=coefficients.worst_quantile,
        laws=[_law_msg(law, ratios.get(law.name, 1.0)) for law in coefficients.laws],
        drift_state=int(coefficients.drift_state),
        drift_ratio=coefficients.drift_ratio,
    )


def _law_msg(law: Law, drift_ratio: float) -> TimingLaw:
    return TimingLaw(
        tier=law.tier,
        law=law.law,
        form=law.form,
        coefficients=list(law.coefficients),
        knots=list(law.knots),
        worst_ratio=law.worst_ratio,
        mape=law.mape,
        samples=law.samples,
        drift_ratio=drift_ratio,
        width=law.width,
        correlation=law.correlation,
    )


def coefficients_from_msg(message: TimingCoefficientsMsg) -> TimingCoefficients:
    """Return what a message carries; raises CoefficientsError on what cannot be planned with."""
    try:
        coefficients = TimingCoefficients(
            time_ns(message.stamp),
            message.device,
            message.model,
            message.dtype,
            message.engine_version,
            tuple(_law(law) for law in message.laws),
            message.worst_quantile,
            Drift(message.drift_state),
            message.drift_ratio,
        )
    except CoefficientsError:
        raise
    except ValueError as error:
        raise CoefficientsError(str(error)) from error
    if coefficients.key != message.key:
        raise CoefficientsError(
            f'its key "{message.key}" contradicts its fields, which say "{coefficients.key}"'
        )
    return coefficients


def _law(message: TimingLaw) -> Law:
    return Law(
        message.law,
        message.form,
        tuple(message.coefficients),
        tuple(message.knots),
        message.tier,
        message.worst_ratio,
        message.mape,
        message.samples,
        message.width,
        message.correlation,
    )
