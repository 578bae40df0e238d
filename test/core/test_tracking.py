# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Drift tracking on synthetic queries: moves with the machine, and only with it."""

from dataclasses import replace
import json
from math import nan

import numpy as np
import pytest

from timebill_ros.query import DecodeStretch, QueryTiming
from timebill_ros.time_estimator.coefficients import (
    CoefficientsError, Drift, TimingCoefficients)
from timebill_ros.time_estimator.laws import (
    AFFINE, Behind, DECODE_STEP, EVICT, Law, OVERHEAD, PREFILL, QUADRATIC)
from timebill_ros.time_estimator.query_samples import Sample
from timebill_ros.time_estimator.tracking import DriftTracker

LAWS = (
    Law(PREFILL, QUADRATIC, (2e-8, 7e-4, 0.01), worst_ratio=1.15, mape=0.05),
    Law(DECODE_STEP, AFFINE, (1e-5, 0.02), worst_ratio=1.3, mape=0.05),
    Law(EVICT, AFFINE, (2e-6, 0.002), worst_ratio=1.5, mape=0.05))
BASE = TimingCoefficients(1_000, 'cpu', 'model', 'float32', '1', LAWS)
TRACKED = ((PREFILL, '', 1), (DECODE_STEP, '', 1), (EVICT, '', 1))


class Machine:
    """Makes the records of queries on a machine that is ``slow`` times as slow as profiled."""

    def __init__(self, seed: int, noise: float = 0.03) -> None:
        self.random = np.random.default_rng(seed)
        self.noise = noise

    def query(self, slow: float = 1.0) -> QueryTiming:
        n_prompt = int(self.random.integers(40, 3000))
        alpha = float(self.random.choice([0.0, 0.5]))
        timing = QueryTiming(
            n_prompt=n_prompt, n_kept=int((1 - alpha) * n_prompt), tier='fp32',
            n_generated=int(self.random.integers(5, 300)))
        took = [slow * float(np.exp(self.noise * self.random.standard_normal())) for _ in LAWS]
        steps = timing.n_generated - 1
        timing.prefill = took[0] * LAWS[0].seconds(n_prompt)
        timing.decode = took[1] * LAWS[1].sum_steps(timing.n_kept, steps)
        timing.stretches = [DecodeStretch('fp32', 1, timing.n_kept, steps, timing.decode)]
        if alpha:
            timing.evict = took[2] * LAWS[2].seconds(n_prompt)
        return timing


def run(tracker: DriftTracker, machine: Machine, queries: int, slow: float) -> float:
    """Return the share of stages that exceeded what was published when they were planned."""
    planned_with = tracker.publish(0)
    exceeded, stages = 0, 0
    for _ in range(queries):
        seen = tracker.observe(machine.query(slow), planned_with)
        exceeded += sum(late for _, late in seen)
        stages += len(seen)
        if tracker.moved:
            planned_with = tracker.publish(planned_with.stamp_ns + 1)
    return exceeded / stages


def test_as_long_as_the_machine_is_as_profiled_nothing_is_told() -> None:
    tracker = DriftTracker(BASE)
    assert tracker.publish(1_000) == BASE
    assert run(tracker, Machine(1, noise=0.01), 200, 1.0) <= 0.01
    assert tracker.drift_state == Drift.NONE
    assert tracker.levels() == pytest.approx(dict.fromkeys(TRACKED, 1.0), abs=0.02)


def test_twenty_queries_follow_a_slow_machine_and_twenty_more_its_recovery() -> None:
    for seed in range(5):
        tracker, machine = DriftTracker(BASE), Machine(seed)
        run(tracker, machine, 20, 2.0)
        told = tracker.publish(0)
        assert told.drift_state == Drift.HIGH
        for law, base in zip(told.laws, BASE.laws):
            assert law.seconds(1000) == pytest.approx(2.0 * base.seconds(1000), rel=0.1)
        assert run(tracker, machine, 300, 2.0) <= 0.01
        run(tracker, machine, 20, 1.0)
        for law, base in zip(tracker.publish(0).laws, BASE.laws):
            assert law.seconds(1000) == pytest.approx(base.seconds(1000), rel=0.1)


def test_share_of_underestimated_stages_returns_under_its_target_on_a_noisy_machine() -> None:
    tracker, machine = DriftTracker(BASE), Machine(3, noise=0.2)
    run(tracker, machine, 20, 1.8)
    assert run(tracker, machine, 1000, 1.8) <= 0.012


def test_one_outlier_moves_no_law() -> None:
    tracker, machine = DriftTracker(BASE), Machine(4, noise=0.01)
    run(tracker, machine, 30, 1.0)
    for _ in range(10):
        tracker.observe(machine.query(slow=40.0))
        assert tracker.levels() == pytest.approx(dict.fromkeys(TRACKED, 1.0), abs=0.03)
        run(tracker, machine, 8, 1.0)


def test_worst_case_is_never_below_that_of_the_profile() -> None:
    tracker = DriftTracker(BASE)
    run(tracker, Machine(5, noise=0.0), 100, 1.0)
    assert [law.worst_ratio for law in tracker.publish(0).laws] == [
        law.worst_ratio for law in LAWS]


def test_what_is_published_does_not_feed_back() -> None:
    told, silent = DriftTracker(BASE), DriftTracker(BASE)
    records = [Machine(6).query(1.4) for _ in range(50)]
    for record in records:
        told.observe(record, told.publish(0))
        silent.observe(record, BASE)
    assert told.levels() == silent.levels()


def test_a_restarted_tracker_goes_on_where_the_first_left_off() -> None:
    first, machine = DriftTracker(BASE), Machine(7)
    run(first, machine, 25, 1.7)
    first.publish(5)
    second = DriftTracker(BASE, state=json.loads(json.dumps(first.state())))
    assert not second.moved
    assert second.publish(5) == first.publish(5)
    timing = machine.query(1.7)
    first.observe(timing)
    second.observe(timing)
    assert second.publish(6) == first.publish(6)


def test_a_state_of_another_profile_is_ignored_and_nonsense_is_refused() -> None:
    tracker = DriftTracker(BASE)
    run(tracker, Machine(8), 25, 1.7)
    state = tracker.state()
    assert DriftTracker(replace(BASE, stamp_ns=2_000), state=state).publish(1_000) == BASE
    for damage in ({'ratios': []}, {'ratios': ['x']}, {'z': nan}, {'published': [1.0]},
                   {'ratios': [-1.0], 'spreads': [1.0]}):
        broken = {**state, 'laws': [{**state['laws'][0], **damage}]}
        with pytest.raises(CoefficientsError):
            DriftTracker(BASE, state=broken)


@pytest.mark.parametrize('record', [
    QueryTiming(),                                                          # never began
    QueryTiming(n_prompt=50, prefill=nan),                                  # ended in its prefill
    QueryTiming(n_prompt=50, n_kept=50, n_generated=1, prefill=-1.0),
    QueryTiming(n_prompt=50, n_kept=50, n_generated=2, prefill=nan, decode=9.0),
    QueryTiming(
        n_prompt=50, n_kept=50, n_generated=90, prefill=1e9,
        stretches=[DecodeStretch('fp32', 1, 50.0, 89, 1e-9)])])
def test_records_that_say_nothing_are_passed_over(record: QueryTiming) -> None:
    tracker = DriftTracker(BASE)
    before = tracker.state()
    assert tracker.observe(record) == []
    assert tracker.state() == before


def test_steps_of_a_tier_that_was_not_profiled_say_nothing() -> None:
    base = replace(BASE, laws=(LAWS[0], replace(LAWS[1], tier='fp32')))
    record = QueryTiming(
        n_prompt=50, n_kept=50, n_generated=90, tier='int4', prefill=LAWS[0].seconds(50),
        stretches=[DecodeStretch('int4', 1, 50.0, 89, 1.8)])
    seen = DriftTracker(base).observe(record)
    assert [sample.law for sample, _ in seen] == [PREFILL]


def test_a_decoding_is_compared_with_the_sum_over_its_steps() -> None:
    law = LAWS[1]
    sample = Sample(
        DECODE_STEP, law.tier, 1.0, stretches=((100.0, 3, Behind(98)), (300.0, 1, Behind(98, 3))))
    assert sample.steps == 4
    assert sample.seconds(BASE) == pytest.approx(sum(law.seconds(n) for n in (100, 101, 102, 300)))
    cached = Sample(PREFILL, '', 1.0, n_tokens=100, n_done=60)
    assert cached.seconds(BASE) == pytest.approx(LAWS[0].seconds(100) - LAWS[0].seconds(60))


def test_steps_of_each_tier_and_batch_move_their_own_law() -> None:
    wide = Law(DECODE_STEP, AFFINE, (1e-5, 0.03), worst_ratio=1.3, mape=0.05, width=4)
    low = Law(DECODE_STEP, AFFINE, (1e-5, 0.01), tier='int8', worst_ratio=1.3, mape=0.05)
    tracker = DriftTracker(replace(BASE, laws=(*LAWS, wide, low)))
    for _ in range(20):
        tracker.observe(QueryTiming(n_prompt=50, n_kept=50, n_generated=31, stretches=[
            DecodeStretch('fp32', 1, 50.0, 10, 1.5 * LAWS[1].sum_steps(50, 10)),
            DecodeStretch('fp32', 4, 60.0, 10, 2.0 * wide.sum_steps(60, 10)),
            DecodeStretch('fp32', 2, 70.0, 5, 9.0),         # a width that has no law says nothing
            DecodeStretch('fp32', 1, 75.0, 5, 1.5 * LAWS[1].sum_steps(75, 5))]))
    levels = tracker.levels()
    assert levels[DECODE_STEP, '', 1] == pytest.approx(1.5, rel=0.05)
    assert levels[DECODE_STEP, '', 4] == pytest.approx(2.0, rel=0.05)


def test_what_no_query_told_of_lately_follows_its_neighbour() -> None:
    low = Law(DECODE_STEP, AFFINE, (1e-5, 0.01), tier='int8', worst_ratio=1.3, mape=0.05)
    tracker, machine = DriftTracker(replace(BASE, laws=(*LAWS, low))), Machine(9, noise=0.01)
    run(tracker, machine, 20, 1.8)
    assert tracker.levels()[DECODE_STEP, 'int8', 1] == pytest.approx(1.8, rel=0.05)
    again = DriftTracker(tracker.base, state=json.loads(json.dumps(tracker.state())))
    assert again.levels() == tracker.levels()


def test_the_overhead_is_followed() -> None:
    law = Law(OVERHEAD, AFFINE, (1e-4, 0.002), worst_ratio=1.3, mape=0.05)
    tracker = DriftTracker(replace(BASE, laws=(*LAWS, law)))
    for _ in range(20):
        tracker.observe(QueryTiming(    # tokenising is none of the law's
            n_prompt=50, n_generated=40, tokenize=0.5, overhead=0.5 + 3.0 * law.seconds(40)))
    assert tracker.levels()[OVERHEAD, '', 1] == pytest.approx(3.0, rel=0.05)


def test_a_prefill_may_take_what_idling_costs_on_top() -> None:
    cold = replace(BASE, laws=(*LAWS, Law('cold', 'constant', (0.05,), samples=3)))
    timing = QueryTiming(n_prompt=100, prefill=1.15 * LAWS[0].seconds(100) + 0.04)
    (_, late), = DriftTracker(cold).observe(timing, cold)
    (_, late_without), = DriftTracker(BASE).observe(timing, BASE)
    assert late_without and not late


def test_a_change_is_followed_within_three_queries_both_ways() -> None:
    for seed in range(5):
        tracker, machine = DriftTracker(BASE), Machine(seed)
        run(tracker, machine, 30, 1.0)
        for slow in (2.0, 1.0, 1.6, 1.0):
            run(tracker, machine, 3, slow)
            assert tracker.levels() == pytest.approx(dict.fromkeys(TRACKED, slow), rel=0.12)
            run(tracker, machine, 20, slow)


def test_a_tier_that_was_not_in_use_meanwhile_follows_a_change_at_once() -> None:
    low = Law(DECODE_STEP, AFFINE, (1e-5, 0.01), tier='int8', worst_ratio=1.3, mape=0.05)
    tracker = DriftTracker(replace(BASE, laws=(*LAWS, low)))

    def ask(tier: str, slow: float) -> None:
        law = low if tier == 'int8' else LAWS[1]
        tracker.observe(QueryTiming(
            n_prompt=50, n_kept=50, n_generated=31, tier=tier, prefill=slow * LAWS[0].seconds(50),
            stretches=[DecodeStretch(tier, 1, 50.0, 30, slow * law.sum_steps(50, 30))]))

    for slow in (1.0, 1.8, 1.0):
        for tier in ('int8', 'fp32') * 5:
            ask(tier, slow)
        for tier in ('int8', 'fp32', 'int8'):       # the prefill is far off in all three
            ask(tier, 2.0 * slow)
        levels = tracker.levels()
        for name in ((DECODE_STEP, 'int8', 1), (DECODE_STEP, '', 1), (PREFILL, '', 1)):
            assert levels[name] == pytest.approx(2.0 * slow, rel=0.05)
    ask('fp32', 1.0)
    ask('fp32', 1.0)
    assert tracker.levels()[DECODE_STEP, 'int8', 1] == pytest.approx(1.0, rel=0.05)


def test_a_machine_that_goes_to_and_fro_between_two_speeds_is_followed() -> None:
    """As a virtual machine's memory does: each speed holds for some sixteen queries."""
    errors, stages = [], []
    for seed in range(3):
        tracker, machine, rng = DriftTracker(BASE), Machine(seed), np.random.default_rng(seed)
        planned_with, slow = tracker.publish(0), 1.0
        for number in range(200):
            if rng.random() < 1 / 8:
                slow = float(rng.choice([1.0, 1.5]))
            seen = tracker.observe(machine.query(slow), planned_with)
            errors += [
                abs(sample.seconds(planned_with) / sample.measured_s - 1.0) for sample, _ in seen
                if number > 20 and sample.law == DECODE_STEP]
            stages += [late for _, late in seen if number > 20]
            if tracker.moved:
                planned_with = tracker.publish(planned_with.stamp_ns + 1)
    assert np.median(errors) < 0.05         # the profile alone: a half of them are 33 % off
    assert np.mean(stages) < 0.03
