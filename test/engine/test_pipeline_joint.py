# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Planned caps and re-planning in a query's run through the embedded model, on a test's clock."""

from dataclasses import replace

import pytest

from timebill_ros.budget.planner import PlannerConfig, Planning
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.pipeline import QueryRun
from timebill_ros.executor.messages import Finished, Progress
from timebill_ros.query import Admission, FinishReason, Outcome, Overrun, Query, Sampling, Turn
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import Law

S = 1_000_000_000
LONG = 'The robot went to the shop and bought bread. ' * 20 + 'Tell me a story about it.'
CAP = 60
STEP = Law('decode_step', 'affine', (1e-4, 0.02), worst_ratio=1.1, correlation=0.2)


class Clock:
    """A clock that moves by ``tick_s`` at every look."""

    def __init__(self, tick_s: float) -> None:
        self.tick_s = tick_s
        self.now_ns = 1_000 * S

    def __call__(self) -> int:
        self.now_ns += round(self.tick_s * S)
        return self.now_ns


def run(engine: Engine, clock: Clock, within_s: float, overrun: Overrun,
        overrun_s: float = 0.0, alpha_max: float = 0.0,
        admission: Admission = Admission.BEST_EFFORT,
        steps: tuple[Law, ...] = (STEP,)) -> tuple[Finished, list[Progress]]:
    """Answer with laws by which a step takes 20 ms and 0.1 ms for each cached token."""
    planning = Planning(TimeEstimator(TimingCoefficients(
        1, 'd', 'm', 'float32', '1', (
            Law('prefill', 'constant', (0.01,)), *steps,
            Law('evict', 'constant', (0.002,)), Law('overhead', 'constant', (0.001,)))), 'fp32'),
        PlannerConfig('joint'), 'profile')
    now_ns = clock.now_ns
    query = Query(
        'q', [Turn('user', LONG)], now_ns, now_ns + round(within_s * S),
        now_ns + round(within_s * S), CAP, False, overrun=overrun,
        alpha_max=alpha_max, admission=admission, overrun_ns=round(overrun_s * S),
        sampling=Sampling(repetition_penalty=1.2))
    at_work = QueryRun(engine, query, engine.tokenize(query.messages), CAP, planning, clock=clock)
    messages = []
    while not at_work.done:
        messages += at_work.advance()
    last = messages.pop()
    assert isinstance(last, Finished)
    assert clock.now_ns < query.deadline_ns + overrun_s * S + S // 10
    return last, [each for each in messages if isinstance(each, Progress)]


def test_what_does_not_fit_is_capped_and_in_time(embedded: Engine) -> None:
    last, progress = run(embedded, Clock(0.003), 1.0, Overrun.KILL)
    assert (last.ending.outcome, last.ending.finish_reason) == (
        Outcome.TRUNCATED, FinishReason.PLANNED_CAP)
    timing = last.timing
    assert 5 < timing.n_generated == timing.n_cap < CAP and last.text
    assert not timing.feasible and timing.deadline_at_risk
    assert progress[-2].deadline_at_risk


def test_only_a_tight_budget_costs_precision(embedded: Engine) -> None:
    assert embedded.info.tiers == ['fp32', 'int4']      # by default, on a CPU
    steps = (replace(STEP, tier='fp32'), replace(STEP, tier='int4', coefficients=(1e-5, 0.005)))
    ample, _ = run(embedded, Clock(0.001), 30.0, Overrun.KILL, steps=steps)
    tight, _ = run(embedded, Clock(0.003), 1.5, Overrun.KILL, steps=steps)
    assert (ample.timing.tier, tight.timing.tier) == ('fp32', 'int4')
    assert not ample.timing.replans and ample.timing.n_kept == ample.timing.n_prompt


def test_without_a_planned_cap_the_deadline_kills(embedded: Engine) -> None:
    last, _ = run(embedded, Clock(0.003), 1.0, Overrun.SKIP_NEXT, overrun_s=0.1)
    assert last.ending.outcome == Outcome.DEADLINE_MISSED and last.timing.n_cap == CAP


def test_steps_that_are_slower_than_their_law_evict_further(embedded: Engine) -> None:
    brisk, _ = run(embedded, Clock(1e-4), 3.0, Overrun.SKIP_NEXT, 9.0, alpha_max=0.95)
    assert brisk.timing.feasible and not brisk.timing.replans
    slow, _ = run(embedded, Clock(0.006), 3.0, Overrun.SKIP_NEXT, 9.0, alpha_max=0.95)
    assert any(' alpha ' in line for line in slow.timing.replans), slow.timing
    assert slow.timing.n_kept < brisk.timing.n_kept
    assert slow.timing.alpha > brisk.timing.alpha
    assert slow.timing.evict > 0.0


def test_time_gained_moves_the_cap_up(embedded: Engine) -> None:
    last, _ = run(embedded, Clock(1e-4), 1.0, Overrun.KILL)
    assert last.ending.outcome == Outcome.COMPLETED
    assert last.timing.n_cap == CAP or last.ending.finish_reason == FinishReason.END_TOKEN
    assert any(' cap ' in line for line in last.timing.replans), last.timing.replans


@pytest.mark.parametrize('overrun', [Overrun.KILL, Overrun.SOFT_LANDING])
def test_ample_time_changes_nothing(embedded: Engine, overrun: Overrun) -> None:
    last, _ = run(embedded, Clock(1e-4), 60.0, overrun)
    assert last.ending.outcome == Outcome.COMPLETED
    assert last.timing.alpha == 0.0 and last.timing.n_cap == CAP and not last.timing.replans


def test_what_was_promised_is_not_capped(embedded: Engine) -> None:
    last, _ = run(
        embedded, Clock(0.003), 1.0, Overrun.KILL, admission=Admission.GUARANTEED)
    assert last.ending.outcome == Outcome.DEADLINE_MISSED and last.timing.n_cap == CAP
