# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The Markdown table of ``timebill bench node``."""

from statistics import median
from typing import Any

from timebill_ros.markdown import markdown_table, number

Row = dict[str, Any]


def table(report: Row) -> str:
    """Return overheads and memory per graph beside a bare action, and how long a start takes."""
    cases = report['idle'], report['busy']
    starts = report['warm_start_s']
    cold = f', cold {report["cold_start_s"]:.1f} s' if 'cold_start_s' in report else ''
    return '\n'.join([
        f'{report["date"]}, {cases[0]["model"]} on {cases[0]["device"]}, {report["cores"]} cores: '
        f'`{report["command"]}`. Milliseconds at the median and the 99th percentile.', '',
        markdown_table(
            ('graph', 'queries', 'in', 'out', 'in + out', 'node, MiB', 'engine, MiB'),
            (('a bare action', cases[0]['queries'], None, None, _pair(report['bare_ms']), None,
              None), *map(_case, cases))),
        '', f'Start-up: warm {median(starts):.1f} s (median of {len(starts)}){cold}.', ''])


def _case(case: Row) -> tuple[str, ...]:
    graph = f'{case["topics"]} topics at {case["rate_hz"]:.0f} Hz' if case['topics'] else 'idle'
    return (graph, str(case['queries']),
            *(_pair(case[name]) for name in ('in_ms', 'out_ms', 'sum_ms')),
            *(number(case[name], 0) for name in ('node_mib', 'engine_mib')))


def _pair(quantiles: dict[str, float]) -> str:
    return f'{quantiles["p50"]:.2f} / {quantiles["p99"]:.2f}'
