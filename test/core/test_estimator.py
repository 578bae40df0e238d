# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Estimates, the worst case, and the profile file with all that can be wrong with it."""

from dataclasses import replace
import json
from pathlib import Path
import random

import pytest

from timebill_ros.time_estimator.coefficients import (
    CoefficientsError, Drift, load, load_profile, save, TimingCoefficients)
from timebill_ros.time_estimator.estimator import TimeEstimator, worst_factor
from timebill_ros.time_estimator.laws import Law

CORRELATION = 0.1
COEFFICIENTS = TimingCoefficients(
    stamp_ns=1_700_000_000_000_000_000, device='Test CPU x2 threads', model='tiny-1234',
    dtype='float32', engine_version='1', laws=(
        Law('prefill', 'quadratic', (1e-8, 1e-3, 0.01), worst_ratio=1.2),
        Law('decode_step', 'affine', (1e-5, 0.03), worst_ratio=1.5, correlation=CORRELATION),
        Law('decode_step', 'affine', (1e-5, 0.05), worst_ratio=1.5, width=4),
        Law('decode_step', 'affine', (1e-5, 0.02), tier='int8'),
        Law('evict', 'affine', (1e-6, 0.002)),
        Law('overhead', 'affine', (1e-4, 0.001))))


def test_each_stage_comes_from_its_law() -> None:
    estimator = TimeEstimator(COEFFICIENTS)
    assert estimator.prefill_s(1000) == pytest.approx(1.02)
    assert estimator.prefill_s(1000, worst=True) == pytest.approx(1.2 * 1.02)
    assert estimator.prefill_s(1000, n_done=1000) == 0.0
    assert estimator.decode_s(100, 2) == pytest.approx(0.031 + 0.03101)
    assert estimator.evict_s(1000) == pytest.approx(0.003)
    assert estimator.overhead_s(10) == pytest.approx(0.002)
    assert estimator.cold_s() == 0.0
    assert TimeEstimator(COEFFICIENTS, 'int8').decode_s(0, 1) == pytest.approx(0.02)


def test_steps_of_several_sequences_have_laws_of_their_own() -> None:
    estimator = TimeEstimator(COEFFICIENTS)
    assert estimator.decode_s(0, 1, width=4) == pytest.approx(0.05)
    assert estimator.decode_s(0, 1, width=2) == pytest.approx(0.05)     # the next larger measured
    assert estimator.decode_s(0, 1, width=8) == pytest.approx(0.10)     # in proportion
    assert estimator.decode_s(0, 1, tier='int8', width=2) == pytest.approx(0.04)
    assert estimator.tiers == ('', 'int8')
    assert estimator.for_tier('int8').decode_s(0, 1) == pytest.approx(0.02)


def test_the_first_work_after_idling_belongs_to_the_worst_case_of_a_prefill() -> None:
    cold = replace(COEFFICIENTS, laws=(
        *COEFFICIENTS.laws, Law('cold', 'constant', (0.05,), worst_ratio=1.2)))
    estimator = TimeEstimator(cold)
    assert estimator.prefill_s(1000) == pytest.approx(1.02)
    assert estimator.prefill_s(1000, worst=True) == pytest.approx(1.2 * 1.02 + 0.06)
    assert estimator.prefill_s(1000, worst=True, n_done=500) == pytest.approx(1.2 * 0.5075)


def test_an_eviction_again_costs_what_was_measured_of_it_else_what_the_first_costs() -> None:
    estimator = TimeEstimator(COEFFICIENTS)
    assert estimator.law('reevict').seconds(1000) == estimator.evict_s(1000)
    measured = replace(COEFFICIENTS, laws=(
        *COEFFICIENTS.laws, Law('reevict', 'constant', (0.001,), samples=5)))
    assert TimeEstimator(measured).law('reevict').seconds(1000) == pytest.approx(0.001)


def test_one_step_may_take_its_quantile_but_many_do_not_all() -> None:
    law = COEFFICIENTS.law('decode_step', '')
    assert worst_factor(law, 0) == 1.0
    assert worst_factor(law, 1) == pytest.approx(1.5)
    factors = [worst_factor(law, n) for n in range(1, 600)]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] > 1.0 + 0.5 * CORRELATION ** 0.5
    uncertain = replace(law, correlation=1.0)      # where nothing is known nothing averages out
    assert worst_factor(uncertain, 500) == pytest.approx(1.5)


def test_the_worst_case_of_correlated_steps_covers_their_sums() -> None:
    """Of steps that are slow together the sum stays below its worst case as often as one does."""
    rng, steps, queries = random.Random(2), 200, 1500
    shared, own = CORRELATION ** 0.5, (1 - CORRELATION) ** 0.5
    deviation = 0.2
    quantile = 1.0 + 2.326 * deviation      # 0.99 of a normal distribution
    law = Law(
        'decode_step', 'constant', (0.03,), worst_ratio=quantile, correlation=CORRELATION)
    above = 0
    for _ in range(queries):
        common = rng.gauss(0, 1)
        total = sum(0.03 * (1 + deviation * (shared * common + own * rng.gauss(0, 1)))
                    for _ in range(steps))
        above += total > law.sum_steps(0, steps) * worst_factor(law, steps)
    assert above / queries <= 0.02


def test_a_profile_file_survives_and_carries_its_samples(tmp_path: Path) -> None:
    path = tmp_path / 'profiles' / 'p.json'
    tracked = replace(COEFFICIENTS, drift_state=Drift.TRACKED, drift_ratio=1.1)
    save(path, tracked, {'prefill': [[100, 0.1]]})
    assert load(path).to_dict() == tracked.to_dict()
    assert load_profile(path)['raw'] == {'prefill': [[100, 0.1]]}
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize('content', [
    b'', b'{', b'[]', b'{"coefficients": 3}', b'\xff\xfe', b'{"coefficients": {}}'])
def test_a_damaged_file_is_refused_with_a_reason(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / 'p.json'
    path.write_bytes(content)
    with pytest.raises(CoefficientsError, match='.+'):
        load(path)


@pytest.mark.parametrize('field, value', [
    ('laws', []), ('laws', None), ('laws', [{}]), ('stamp_ns', 'soon'), ('worst_quantile', 2),
    ('drift_state', 9), ('drift_ratio', 0), ('laws', [COEFFICIENTS.laws[0].to_dict()] * 2)])
def test_impossible_coefficients_are_refused(field: str, value: object) -> None:
    fields = json.loads(json.dumps(COEFFICIENTS.to_dict()))
    fields[field] = value
    with pytest.raises(CoefficientsError):
        TimingCoefficients.from_dict(fields)


def test_a_foreign_profile_is_refused_with_both_keys() -> None:
    with pytest.raises(CoefficientsError) as caught:
        COEFFICIENTS.require_key('other device | m | bf16 | engine 2')
    assert COEFFICIENTS.key in str(caught.value) and 'other device' in str(caught.value)
    COEFFICIENTS.require_key('Test CPU x2 threads | tiny-1234 | float32 | engine 1')
