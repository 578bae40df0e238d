# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the calibration node says in /diagnostics."""

from timebill_ros.nodes.diagnostics import Diagnosis, ERROR, OK, WARN
from timebill_ros.query import NS_PER_S
from timebill_ros.time_estimator.calibrator import Calibrator
from timebill_ros.time_estimator.coefficients import Drift
from timebill_ros.time_estimator.fit import doubts

WARN_UNDERESTIMATED = 0.05  # share of queries that exceeded their worst case


def diagnoses(
    calibrator: Calibrator | None, uncalibrated: str, profile: str, not_adopted: str
) -> list[Diagnosis]:
    """
    Return the state of each task.

    ``uncalibrated``: why there are no coefficients, where there are none; ``profile``: how the
    request for a profile stands; ``not_adopted``: with what the server plans instead of them.
    """
    if calibrator is None or calibrator.current is None or calibrator.tracker is None:
        summary = f'uncalibrated: {uncalibrated}' + (f'; {profile}' if profile else '')
        return [Diagnosis('coefficients', ERROR, summary)]
    return [_coefficients(calibrator, not_adopted), _drift(calibrator)]


def _coefficients(calibrator: Calibrator, not_adopted: str) -> Diagnosis:
    current = calibrator.current
    assert current is not None
    values = {
        'key': current.key,
        'source': calibrator.source,
        'file': str(calibrator.path),
        'stamp': f'{current.stamp_ns / NS_PER_S:.3f}',
    }
    for law in current.laws:
        name = law.title
        values[f'{name} held-out error'] = f'{law.mape:.4f}'
        values[f'{name} samples'] = str(law.samples)
    if not_adopted:
        return Diagnosis(
            'coefficients',
            WARN,
            f'the server does not plan with them but with {not_adopted}',
            values,
        )
    doubted = doubts(current.laws)
    if doubted:
        return Diagnosis('coefficients', WARN, '; '.join(doubted), values)
    return Diagnosis('coefficients', OK, f'published, from {calibrator.source}', values)


def _drift(calibrator: Calibrator) -> Diagnosis:
    current, tracker = calibrator.current, calibrator.tracker
    assert current is not None and tracker is not None
    share = calibrator.underestimated_share
    values = {
        'underestimated share': f'{share:.3f}',
        'of queries': str(calibrator.queries),
        'target share': f'{1.0 - current.worst_quantile:.3f}',
    }
    levels = tracker.levels()
    for law in current.laws:
        name = law.title
        if law.name in levels:
            values[f'{name} measured / profiled'] = f'{levels[law.name]:.3f}'
        values[f'{name} worst case ratio'] = f'{law.worst_ratio:.3f}'
    ratio = tracker.drift_ratio
    if tracker.drift_state == Drift.HIGH:
        return Diagnosis(
            'drift',
            WARN,
            f'high: queries take {ratio:.2f} times as long as profiled; '
            'the coefficients follow, a new profile would fit better',
            values,
        )
    if share > WARN_UNDERESTIMATED:
        return Diagnosis(
            'drift',
            WARN,
            f'{share:.0%} of the last {calibrator.queries} queries took longer '
            'than their worst case',
            values,
        )
    if tracker.drift_state == Drift.TRACKED:
        return Diagnosis('drift', OK, f'tracked: {ratio:.2f} times as long as profiled', values)
    return Diagnosis('drift', OK, 'none: queries take as long as profiled', values)
