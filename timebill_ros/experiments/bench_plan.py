# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
``timebill bench plan``: what one planning decision costs on this machine.

Random queries, from starving budgets to generous ones, over three tiers with a predicted length
distribution; times without a model. The laws are those of a 7B-shaped model on one H200 in round
numbers, and once more with knots, where no closed form holds.
"""

import argparse
from collections.abc import Callable
import gc
import os
import platform
import random
import time
from typing import Any

from timebill_ros.budget.planner import Plan, plan, PlanInputs, PlannerConfig
from timebill_ros.budget.quality import QualityProfile
from timebill_ros.budget.quantiles import PROBABILITIES
from timebill_ros.experiments.report_file import deliver
from timebill_ros.markdown import markdown_table
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import Law

TIERS = ('bf16', 'int8', 'int4')
_STEP_S = (0.0042, 0.0026, 0.0019)      # per tier with an empty cache
_PER_TOKEN_S = 2e-8
_QUALITY = QualityProfile('bench', (0.0, 0.5, 0.95), (1024,), {
    'bf16': ((0.0, 0.05, 0.3),), 'int8': ((0.01, 0.06, 0.31),), 'int4': ((0.1, 0.14, 0.4),)})
_LIMIT_US = 200.0
_NEVER_NS = 10 ** 18


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument(
        '--decisions', type=int, default=5000, help='decisions per row (default 5000)')


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print a table or one JSON object."""
    rows = {}
    for form, estimator in (('affine', _estimator(False)), ('knots', _estimator(True))):
        for policy in ('joint', 'paper'):
            config = PlannerConfig(policy)
            cases = _cases(arguments.decisions, estimator)
            rows[f'{policy}, {form}'] = _times(
                cases, lambda case: plan(case, estimator, config, _QUALITY))
    report = {'date': time.strftime('%Y-%m-%d'),
              'machine': f'{platform.machine()}, {os.cpu_count()} cores',
              'python': platform.python_version(), 'decisions': arguments.decisions,
              'limit_us': _LIMIT_US, 'microseconds': rows}
    deliver(report, arguments, _table)
    return 0


def _cases(count: int, estimator: TimeEstimator) -> list[PlanInputs]:
    drawn = random.Random(1)
    cases = []
    for _ in range(count):
        n_prompt, n_hat = drawn.randrange(16, 32000), drawn.randrange(16, 512)
        whole_s = estimator.decode_s(n_prompt, min(512, 5 * n_hat), worst=True)
        lengths = sorted(drawn.randrange(1, 2 * n_hat) for _ in PROBABILITIES)
        cases.append(PlanInputs(
            n_prompt, 512, whole_s * drawn.uniform(0.0, 1.2), 0.95, n_hat, TIERS,
            tuple(zip(PROBABILITIES, lengths))))
    return cases


def _estimator(knots: bool) -> TimeEstimator:
    steps = []
    for tier, step_s in zip(TIERS, _STEP_S):
        ends = (0.0, 2048.0, 8192.0, 33000.0)
        values = tuple(step_s + _PER_TOKEN_S * end for end in ends)
        steps.append(Law('decode_step', 'piecewise', values, ends, tier, 1.1) if knots else
                     Law('decode_step', 'affine', (_PER_TOKEN_S, step_s), (), tier, 1.1))
    return TimeEstimator(TimingCoefficients(1, 'bench', 'bench', 'bfloat16', '1', (
        Law('prefill', 'quadratic', (3e-10, 2.6e-5, 4e-3)), *steps,
        Law('evict', 'affine', (1e-8, 2e-3), worst_ratio=1.2),
        Law('overhead', 'affine', (2e-5, 1e-3), worst_ratio=1.5))), TIERS[0])


def _times(cases: list[PlanInputs], decide: Callable[[PlanInputs], Plan]) -> dict[str, float]:
    """
    Return quantiles over the decisions of their time in microseconds; the first 100 warm up.

    Each counts with the best of three goes: what else runs on the machine is not the question.
    """
    for case in cases[:100]:
        decide(case)
    spent = []
    gc.disable()        # as in the engine, which collects between queries
    for case in cases:
        best_ns = _NEVER_NS
        for _ in range(3):
            began_ns = time.perf_counter_ns()
            decide(case)
            best_ns = min(best_ns, time.perf_counter_ns() - began_ns)
        spent.append(best_ns / 1e3)
    gc.enable()
    spent.sort()
    return {name: round(spent[min(len(spent) - 1, int(share * len(spent)))], 1)
            for name, share in (('p50', 0.5), ('p99', 0.99), ('p99.9', 0.999), ('max', 1.0))}


def markdown(report: dict[str, Any]) -> str:
    """Return the report as the docs show it."""
    names = ('p50', 'p99', 'p99.9', 'max')
    made = markdown_table(('policy, form of the decode law', *names), (
        (name, *(f'{row[each]:.0f}' for each in names))
        for name, row in report['microseconds'].items()))
    return (f'`timebill bench plan`, {report["date"]}, {report["machine"]}, Python '
            f'{report["python"]}, {report["decisions"]} decisions each; microseconds.\n\n{made}\n')


def _table(report: dict[str, Any]) -> str:
    """Return the report for people."""
    lines = [f'{report["date"]}, Python {report["python"]}, {report["decisions"]} decisions each; '
             f'microseconds (aim: {report["limit_us"]:.0f})',
             f'{"":16}' + ''.join(f'{name:>9}' for name in ('p50', 'p99', 'p99.9', 'max'))]
    for name, row in report['microseconds'].items():
        lines.append(f'{name:16}' + ''.join(f'{value:9.1f}' for value in row.values()))
    return '\n'.join(lines)
