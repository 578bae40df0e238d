# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the drift experiment makes of its queries: a line for each block of them."""

from collections.abc import Sequence
from math import isfinite, nan
from statistics import fmean, median
from typing import Any

from timebill_ros.markdown import markdown_table, number, percent
from timebill_ros.query import QueryTiming
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.laws import DECODE_STEP, PREFILL
from timebill_ros.time_estimator.query_samples import samples_of

BLOCK = 10
_AT_TOKENS = 100        # cached tokens at which published and profiled steps are compared


def row_of(phase: str, timing: QueryTiming, planned_with: TimingCoefficients,
           base: TimingCoefficients) -> dict[str, Any]:
    """Return what the report needs of one query."""
    found = samples_of(timing)
    ratios = {}
    for each in found:
        ratios[each.law] = each.measured_s / each.seconds(base)
    tier = timing.tier
    published_s = planned_with.law(DECODE_STEP, tier).seconds(_AT_TOKENS)
    return {
        'phase': phase, 'n_prompt': timing.n_prompt, 'n': timing.n_generated, 'tier': tier,
        'prefill': _known(ratios.get(PREFILL)), 'decode': _known(ratios.get(DECODE_STEP)),
        'level': round(published_s / base.law(DECODE_STEP, tier).seconds(_AT_TOKENS), 4),
        'late': underestimated(timing, planned_with), 'late_alone': underestimated(timing, base)}


def underestimated(timing: QueryTiming, coefficients: TimingCoefficients) -> bool:
    """Tell whether the query's work took longer than its worst case at the real length."""
    found = samples_of(timing)
    worst_s = sum(each.worst_s(coefficients) for each in found)
    return sum(each.measured_s for each in found) > worst_s


def table(result: dict[str, Any]) -> str:
    """Return the table of one experiment, in Markdown."""
    meta = result['meta']
    rows = result['rows']
    lines = []
    for phase in dict.fromkeys(row['phase'] for row in rows):
        of_phase = [row for row in rows if row['phase'] == phase]
        for first in range(0, len(of_phase), BLOCK):
            block = of_phase[first:first + BLOCK]
            lines.append((
                phase, f'{first + 1}–{first + len(block)}',
                *(number(_median(block, law), 2) for law in ('prefill', 'decode')),
                number(block[-1]['level'], 2),
                *(percent(fmean(row[name] for row in block)) for name in ('late', 'late_alone'))))
    late, alone = (sum(row[name] for row in rows) for name in ('late', 'late_alone'))
    return '\n'.join([
        f'{meta["date"]}, {meta["key"]}, {meta["cores"]} cores, load average before '
        f'{meta["load_average"]:.1f}: `{meta["command"]}`.', '',
        markdown_table(
            ('phase', 'queries', 'prefill, measured / profile', 'decode, measured / profile',
             'published decode level', 'underestimated, tracking',
             'underestimated, profile alone'), lines),
        '', f'In all {late} of {len(rows)} queries were underestimated with tracking, '
        f'{alone} would have been with the profile alone.', ''])


def _known(value: float | None) -> float | None:
    return None if value is None or not isfinite(value) else round(value, 4)


def _median(block: Sequence[dict[str, Any]], name: str) -> float:
    known = [row[name] for row in block if row[name] is not None]
    return median(known) if known else nan
