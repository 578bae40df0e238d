# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Re-planning: properties in random states, and decoding simulated on a virtual clock."""

from dataclasses import dataclass, field, replace
import random

import pytest

from timebill_ros.budget.planner import Plan, plan, PlanInputs, PlannerConfig, Planning
from timebill_ros.budget.quality import QualityProfile
from timebill_ros.budget.quantiles import given_longer_than
from timebill_ros.budget.replan import (
    changes, HOLD_STEPS, Pace, replan, REPLAN_STEPS, RunState, tokens_that_fit)
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import Law

TIERS = ('bf16', 'int8', 'int4')
QUALITY = QualityProfile('m', (0.0, 0.95), (1,), {
    'bf16': ((0.0, 0.3),), 'int8': ((0.01, 0.31),), 'int4': ((0.1, 0.37),)})
ESTIMATOR = TimeEstimator(TimingCoefficients(
    1, 'd', 'm', 'bfloat16', '1', (
        Law('prefill', 'constant', (0.1,)),
        *(Law('decode_step', 'affine', (2e-6, q), (), tier, 1.2, correlation=0.1)
          for tier, q in zip(TIERS, (0.010, 0.006, 0.004))),
        Law('evict', 'constant', (0.02,)), Law('overhead', 'affine', (1e-5, 0.001)))), 'bf16')
PLANNING = Planning(ESTIMATOR, PlannerConfig('joint'), 'profile', QUALITY)
INPUTS = PlanInputs(2000, 400, 8.0, 0.95, tiers=TIERS)


@dataclass
class Run:
    """A simulated decoding: what its steps take is the law times ``pace(step)``."""

    inputs: PlanInputs
    pace: object
    planning: Planning = PLANNING
    length: int = 10 ** 6
    replans: list[str] = field(default_factory=list)
    alphas: list[float] = field(default_factory=list)
    risk_at_s: float = -1.0

    def go(self, replans: bool = True) -> 'Run':
        """Decode until the response ends, or the budget, which counts from the plan."""
        made = plan(self.inputs, ESTIMATOR, self.planning.config, QUALITY)
        self.plan, self.n_kept, self.now_s, self.done, changed_at = made, 2000, 0.0, 1, 0
        self._evict()
        pace = Pace()
        limit_s = self.inputs.budget_left_s
        while self.done < min(self.plan.cap, self.length) and self.now_s < limit_s:
            expected_s = ESTIMATOR.decode_s(
                self.n_kept + self.done - 1, 1, tier=self.plan.tier)
            step_s = expected_s * self.pace(self.done)
            self.now_s += step_s
            self.done += 1
            pace.add(step_s, expected_s)
            if not replans or self.done % REPLAN_STEPS:
                continue
            left = replace(
                self.inputs, budget_left_s=self.inputs.budget_left_s - self.now_s)
            found = replan(RunState(
                left, self.plan, self.done, self.n_kept, slowdown=pace.slowdown,
                changed_at=changed_at), self.planning)
            if found.at_risk and self.risk_at_s < 0.0:
                self.risk_at_s = self.now_s
            if found.plan is not None:
                self.replans += [
                    ' '.join((f'{self.now_s:.3f}', *each, found.why))
                    for each in changes(self.plan, found.plan)]
                self.plan, changed_at = found.plan, self.done
                self._evict()
        return self

    def _evict(self) -> None:
        if self.plan.n_kept < self.n_kept:
            self.n_kept = self.plan.n_kept
            self.now_s += 0.02
        self.alphas.append(self.plan.alpha)

    @property
    def met(self) -> bool:
        return self.now_s <= self.inputs.budget_left_s


def test_a_run_as_predicted_is_left_alone() -> None:
    run = Run(INPUTS, lambda step: 1.0).go()
    assert run.met and run.done == 400 and not run.replans and run.risk_at_s < 0.0


@pytest.mark.parametrize('budget_s, slow', [(5.0, 1.6), (6.0, 2.0), (3.0, 1.5), (2.8, 1.3)])
def test_slow_steps_tighten_theta_and_the_deadline_holds(budget_s: float, slow: float) -> None:
    def pace(step: int) -> float:
        return slow if step > 40 else 1.0

    inputs = replace(INPUTS, budget_left_s=budget_s, may_cap=False)
    assert not Run(inputs, pace).go(replans=False).met
    run = Run(inputs, pace).go()
    assert run.met and run.done == 400, run.replans
    assert any(' tier ' in line or ' alpha ' in line for line in run.replans)
    assert run.alphas == sorted(run.alphas)             # what was evicted does not come back


def test_where_nothing_helps_the_cap_is_shortened_and_the_risk_told_early() -> None:
    inputs = replace(INPUTS, budget_left_s=3.0)
    run = Run(inputs, lambda step: 4.0 if step > 40 else 1.0).go()
    assert run.met and 40 < run.done < 400 and run.plan.cap == run.done
    assert 0.0 < run.risk_at_s < 1.5                    # long before the deadline
    assert any(' cap ' in line for line in run.replans)


def test_time_to_spare_brings_the_better_tier_back() -> None:
    inputs = replace(INPUTS, budget_left_s=3.0)
    run = Run(inputs, lambda step: 0.5 if step > 20 else 1.0).go()
    assert run.met and run.done == 400
    assert any('tier' in line and 'time to spare' in line for line in run.replans)
    assert not any('alpha' in line for line in run.replans)


def test_a_planned_cap_moves_up_when_steps_are_faster_than_their_worst_case() -> None:
    inputs = replace(INPUTS, budget_left_s=1.5)
    cap = plan(inputs, ESTIMATOR, PLANNING.config, QUALITY).cap
    run = Run(inputs, lambda step: 1.0).go()
    assert cap < run.done < 400 and run.met


def test_noise_does_not_make_it_flap() -> None:
    rng = random.Random(3)
    for budget_s in (2.2, 2.6, 3.0, 4.0, 5.0):
        inputs = replace(INPUTS, budget_left_s=budget_s, may_cap=False)
        run = Run(inputs, lambda step: rng.uniform(0.9, 1.1)).go()
        assert run.met and len(run.replans) <= 2, run.replans


def test_one_late_step_does_not_count_as_pace() -> None:
    pace = Pace()
    for step in range(20):
        pace.add(0.2 if step == 15 else 0.01, 0.01)
    assert pace.slowdown == pytest.approx(1.0)
    for _ in range(15):
        pace.add(0.03, 0.01)
    assert pace.slowdown == pytest.approx(3.0)


def random_state(rng: random.Random) -> RunState:
    inputs = replace(
        INPUTS, n_prompt=rng.randrange(0, 4000), budget_left_s=rng.uniform(0.0, 8.0),
        cap=rng.randrange(2, 500), n_predicted=rng.choice([0, rng.randrange(1, 300)]),
        may_cap=rng.random() < 0.5,
        quantiles=rng.choice([(), ((0.1, 10), (0.5, 50), (0.9, 200), (0.99, 450))]))
    made = plan(inputs, ESTIMATOR, PLANNING.config, QUALITY)
    done = rng.randrange(1, made.cap + 1)
    left_s = max(0.0, inputs.budget_left_s - rng.uniform(0.5, 2.0) * done * 0.01)
    return RunState(
        replace(inputs, budget_left_s=left_s), made, done, made.n_kept,
        rng.choice([0, rng.randrange(1, 300)]), rng.uniform(0.5, 3.0), rng.randrange(0, done + 1))


def test_properties_in_random_states() -> None:
    rng = random.Random(17)
    seen = {'stay': 0, 'tightened': 0, 'relaxed': 0, 'risk': 0}
    for _ in range(1500):
        state = random_state(rng)
        found = replan(state, PLANNING)
        assert found == replan(state, PLANNING)
        seen['risk'] += found.at_risk
        if found.plan is None:
            seen['stay'] += 1
            continue
        new, old = found.plan, state.plan
        assert new.n_kept <= state.n_kept and new.alpha >= old.alpha - 1e-9
        assert new.alpha <= state.inputs.alpha_max and new.tier in TIERS
        assert state.n_generated <= new.cap <= state.inputs.cap
        assert changes(old, new)
        if TIERS.index(new.tier) < TIERS.index(old.tier) and 'spare' in found.why:
            assert state.n_generated - state.changed_at >= HOLD_STEPS
            assert new.n_kept == state.n_kept
        if new.cap < old.cap:
            assert state.inputs.may_cap
        seen['relaxed' if 'spare' in found.why else 'tightened'] += 1
    assert min(seen.values()) > 20, seen


@pytest.mark.parametrize('policy', ['paper', 'fixed'])
def test_the_other_policies_plan_once_but_tell_the_risk(policy: str) -> None:
    planning = replace(PLANNING, config=PlannerConfig(policy))
    made: Plan = plan(INPUTS, ESTIMATOR, planning.config)
    late = RunState(replace(INPUTS, budget_left_s=0.1), made, 10, 2000)
    assert replan(late, planning).plan is None and replan(late, planning).at_risk
    assert not replan(replace(late, inputs=INPUTS), planning).at_risk


def test_tokens_that_fit_fill_the_budget() -> None:
    made = plan(INPUTS, ESTIMATOR, PLANNING.config, QUALITY)
    state = RunState(replace(INPUTS, budget_left_s=1.0), made, 50, 2000)
    left = tokens_that_fit(state, PLANNING)
    assert 40 < left < 100
    needed_s = ESTIMATOR.decode_s(2049, left, worst=True, tier=made.tier)
    assert needed_s < 1.0 < needed_s + 0.03
    assert tokens_that_fit(replace(state, inputs=replace(INPUTS, budget_left_s=0.0)), PLANNING) == 0


def test_quantiles_given_that_the_response_goes_on() -> None:
    tail = ((0.2, 10), (0.6, 50), (0.9, 100))
    assert given_longer_than(tail, 0) == tail
    assert given_longer_than(tail, 10) == (
        (pytest.approx(0.5), 50), (pytest.approx(0.875), 100))
    assert given_longer_than(tail, 100) == ()
