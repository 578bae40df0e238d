# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The Markdown tables of ``timebill bench node`` and of benchmarks/node_clients.py."""

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


def clients(report: Row) -> str:
    """Return how the queries of several clients ended, and what must be zero."""
    times = '; '.join(f'{name} {_pair(report[key])} ms' for name, key in (
        ('until the first piece of text', 'first_feedback_ms'),
        ('from a cancel to the answer', 'cancel_ms')))
    return '\n'.join([
        f'{report["date"]}, {report["model"]} on {report["device"]}: `{report["command"]}`, '
        f'{report["clients"]} clients in one process.', '',
        markdown_table(('outcome', 'error code', 'queries'), (
            (*ended.split(), count) for ended, count in report['outcomes'].items())),
        '', f'Late ones passed off as good: {report["ok_but_late"]} of {report["queries"]}; '
        f'streams torn: {report["streams_torn"]}. Median and 99th percentile {times}.', ''])


def _pair(quantiles: dict[str, float]) -> str:
    return ' / '.join(number(quantiles.get(name), 2) for name in ('p50', 'p99'))
