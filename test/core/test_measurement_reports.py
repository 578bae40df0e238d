# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the accuracy and drift measurements make of their rows, and the tables in the docs."""

import json
from pathlib import Path
import re
import subprocess
import sys

import pytest

from timebill_ros.experiments import accuracy_report, cpu_report, drift_report
from timebill_ros.experiments.report_file import to_json
from timebill_ros.query import DecodeStretch, QueryTiming
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.laws import Law

ROOT = Path(__file__).resolve().parents[2]
BASE = TimingCoefficients(1, 'd', 'm', 'float32', '1', (
    Law('prefill', 'affine', (1e-3, 0.0), worst_ratio=1.1),
    Law('decode_step', 'affine', (0.0, 0.02), worst_ratio=1.1)))


def row(phase: str, measured: float, predicted: float, worst: float) -> dict[str, object]:
    """Return a query that decoded only; tracking predicts exactly."""
    return {'phase': phase, 'stages': {
        'decode': [measured, predicted, worst, measured, measured, 10],
        'prefill': [1.0, 1.0, 1.0, 1.0, 1.0, 1]}}


def test_errors_and_shares_come_from_the_rows() -> None:
    rows = [row('idle', 1.0, 1.1, 1.2), row('idle', 2.0, 1.6, 1.8)]
    found = accuracy_report.figures(rows, 'profile')
    assert found['decode'] == pytest.approx((0.1 + 0.2) / 2)
    assert found['total'] == pytest.approx((0.1 / 2 + 0.4 / 3) / 2)
    assert found['above_worst'] == 0.5 and found['prefill'] == 0.0
    assert accuracy_report.figures(rows, 'tracking')['decode'] == 0.0


def test_where_it_drifts_the_first_queries_stand_apart() -> None:
    rows = [row('idle', 1, 1, 1)] * 30 + [row('loaded', 2, 1, 1)] * 50
    assert [(phase, which, len(own)) for phase, which, own in accuracy_report.blocks(rows)] == [
        ('idle', '1-30', 30), ('loaded', '1-20', 20), ('loaded', '21-50', 30)]


def test_like_queries_in_a_row_and_the_memory_beside_them_show_what_cannot_be_predicted() -> None:
    rows = [row('idle', 1.0, 1.0, 1.2) | {'read_gb_s': 50.0},
            row('idle', 2.0, 1.0, 1.2) | {'read_gb_s': 30.0}]
    assert accuracy_report.repeats(rows) == ''
    rows[0] = rows[0] | {'again': {'decode': 1.5, 'prefill': 0.9}}
    found = accuracy_report.repeats(rows)
    assert 'of 1 queries' in found and 'prefill 10.00 % (median 0.900 times' in found
    assert 'decode steps 50.00 % (median 1.500' in found and 'in all 20.00 %' in found
    found = accuracy_report.by_bandwidth(rows)
    assert '30 to 50 GB/s' in found
    assert 'above 40 GB/s (1 queries) steps took 1.00 times' in found
    assert 'below 40 GB/s (1 queries) steps took 2.00 times' in found
    assert accuracy_report.by_bandwidth([row('idle', 1, 1, 1)]) == ''
    rows = [row('idle', 1.0, 1.0, 1.2) | {'host_ms': 0.5},
            row('idle', 2.0, 1.0, 1.2) | {'host_ms': 2.0}]
    found = accuracy_report.by_host(rows)
    assert 'less than 1.00 ms, 1 queries: 0.00 %, 0.00 %, 0.00 %' in found
    assert 'more than 1.00 ms, 1 queries: 0.00 %, 50.00 %, 33.33 %' in found
    assert accuracy_report.by_host([row('idle', 1, 1, 1)]) == ''
    assert accuracy_report.early_steps(rows) == ''
    rows = [each | {'early_ratio': ratio, 'tier': 'int4', 'n_prompt': n} for each, ratio, n in (
        (rows[0], 1.01, 500), (rows[1], 1.03, 900), (rows[0], 1.2, 9000))]
    assert 'int4 1.020 up to 4096 tokens, 1.200 beyond' in accuracy_report.early_steps(rows)


def test_a_query_is_underestimated_by_what_it_was_planned_with_or_by_the_profile_alone() -> None:
    timing = QueryTiming(n_prompt=100, n_generated=11, prefill=0.15, tier='fp32', stretches=[
        DecodeStretch('fp32', 1, 100.0, 10, 0.3)])
    slow = TimingCoefficients(2, 'd', 'm', 'float32', '1', tuple(
        law.scaled(1.5) for law in BASE.laws))
    found = drift_report.row_of('busy', timing, slow, BASE)
    assert (found['late'], found['late_alone']) == (False, True)
    assert found['prefill'] == found['decode'] == found['level'] == 1.5
    table = drift_report.table({'rows': [found] * 12, 'meta': {
        'date': '', 'key': '', 'cores': 2, 'load_average': 0.0, 'command': ''}})
    assert '| busy | 1–10 | 1.50 | 1.50 | 1.50 | 0 % | 100 % |' in table
    assert '0 of 12' in table and '12 would have been' in table


def test_the_tables_of_a_cpu_show_every_row() -> None:
    steps = {'threads': 2, 'ms': 4.25, 'peer_ms': 8.5, 'times_as_fast': 2.0}
    report = {
        'date': 'today', 'device': 'd', 'torch': 't', 'peer': 'p', 'load_average': 0.1,
        'command': 'c', 'answer': 256,
        'decode': [{**steps, 'cached_tokens': 4096, 'tier': 'int4'}],
        'prefill': [{'threads': 1, 'ms': 1234.0, 'prompt_tokens': 512, 'tier': tier,
                     'gflops': 101.2, 'gemm_gflops': 110.0}
                    for tier in ('fp32', 'int16', 'int4')],
        'answers': [{'prefill': name, 'prompts': 14, 'tokens': 48, 'same': same}
                    for name, same in (('fp32', 14), ('int16', 13))],
        'worth': [{'threads': 2, 'tokens': 2048, 'answer': 256, 'fp32_ms': 1000.0,
                   'saved_by_alpha_0.5_ms': -20.0, 'saved_by_int4_ms': 300.0}],
        'text': [{'tier': 'int4', 'tokens': 9, 'perplexity': 1.5, 'agreement': 0.5,
                  'divergence_nats': 0.1}]}
    table = cpu_report.table(json.loads(to_json(report)))
    for line in ('| 2 | 4,096 | `int4` | 4.2 | 8.5 | 2.0 |',
                 '| 1 | 512 | 16 bits (`prefill_tier: int16`) | 1.23 | 101 | 110 | – | – |',
                 '13 (`prefill_tier: int16`)', 'saved by α 0.5', '| 1.00 | -0.02 | 0.30 |',
                 '| `int4` | 9 | 1.50 | 0.500 | 0.1000 |'):
        assert line in table, table


def test_the_tables_in_the_docs_are_those_of_the_measurements() -> None:
    subprocess.run([sys.executable, ROOT / 'benchmarks' / 'tables.py', '--check'], check=True)


def test_laws_are_evaluated_in_one_place() -> None:
    inside = re.compile(r'\.(coefficients|knots|pieces)\[')
    files = {
        path: path.read_text(encoding='utf-8') for path in (ROOT / 'timebill_ros').rglob('*.py')
        if 'time_estimator' not in path.parts}
    elsewhere = [path for path, text in files.items()
                 if 'time_estimator' in text and inside.search(text)]
    assert elsewhere == []
