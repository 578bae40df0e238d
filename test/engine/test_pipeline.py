# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""One query's way through the embedded model, on a clock of the test's own."""

from math import isfinite, isnan
from typing import Any

import pytest

from timebill_ros.budget.kept import kept_tokens
from timebill_ros.budget.planner import PlannerConfig, Planning
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.pipeline import Message, QueryRun, Unit
from timebill_ros.engine.shared_step import decode_together
from timebill_ros.executor.messages import Finished, Planned, Progress
from timebill_ros.query import (
    ErrorCode, FinishReason, Outcome, Overrun, Query, QueryTiming, Sampling, Stage, Turn)
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import Law

S = 1_000_000_000
CAPITAL = 'What is the capital of France?'
LONG = 'The robot went to the shop and bought bread. ' * 40


class Clock:
    """A clock that moves a millisecond at every look, and jumps when told."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * S
        self._jump: tuple[int, int] = (-1, 0)

    def __call__(self) -> int:
        self.now_ns += S // 1000
        now_ns = self.now_ns
        looks_left, jump_ns = self._jump
        if looks_left == 0:
            self.now_ns += jump_ns
        self._jump = (looks_left - 1, jump_ns)
        return now_ns

    def jump_after(self, looks: int, seconds: float) -> None:
        """Jump once somebody has looked so many times more."""
        self._jump = (looks - 1, round(seconds * S))


@pytest.fixture
def engine(embedded: Engine) -> Engine:
    return embedded


@pytest.fixture
def clock() -> Clock:
    return Clock()


def planning(step_s: float = 0.03, per_cached_s: float = 1e-5, **config: Any) -> Planning:
    """Return laws of a made-up machine: the plans of these tests do not depend on the real one."""
    return Planning(TimeEstimator(TimingCoefficients(
        stamp_ns=5, device='d', model='m', dtype='float32', engine_version='1', laws=(
            Law('prefill', 'affine', (1e-3, 0.01)),
            Law('decode_step', 'affine', (per_cached_s, step_s)),
            Law('evict', 'constant', (0.002,)),
            Law('overhead', 'affine', (1e-4, 0.001)))), 'fp32'), PlannerConfig(**config), 'profile')


def start(
        engine: Engine, clock: Clock, text: str = CAPITAL, within_s: float = 600.0, cap: int = 40,
        plan_with: Planning | None = None, clients: bool = False, **fields: Any) -> QueryRun:
    now_ns = clock()
    deadline_ns = now_ns + round(within_s * S)
    query = Query(
        'q', [Turn('user', text)], now_ns, deadline_ns, deadline_ns - S // 50, cap, clients,
        sampling=Sampling(repetition_penalty=1.2), **fields)
    return QueryRun(
        engine, query, engine.tokenize(query.messages), cap, plan_with or planning(),
        tokenize_s=0.001, clock=clock)


def finish(run: QueryRun) -> tuple[Finished, list[Message]]:
    """Advance to the end; returns what came last and what came before."""
    messages: list[Message] = []
    while not run.done:
        messages += run.advance()
    last = messages.pop()
    assert isinstance(last, Finished)
    assert not any(isinstance(each, Finished) for each in messages)
    return last, messages


def shown(messages: list[Message]) -> str:
    return ''.join(each.text for each in messages if isinstance(each, Progress))


def assert_known(timing: QueryTiming, *names: str) -> None:
    assert all(isfinite(getattr(timing, name)) for name in names), timing


def test_an_answer_in_time_is_complete_and_its_record_too(engine: Engine, clock: Clock) -> None:
    last, messages = finish(start(engine, clock))
    timing = last.timing
    assert last.ending.outcome == Outcome.COMPLETED
    assert last.ending.finish_reason == FinishReason.END_TOKEN
    assert last.text == shown(messages) == 'The capital of France is Paris.'
    progress = [each for each in messages if isinstance(each, Progress)]
    assert [each.n_generated for each in progress] == list(range(timing.n_generated + 1))
    assert not any(each.deadline_at_risk for each in progress) and timing.feasible
    assert all(each.predicted_finish_ns > each.sent_ns for each in progress[:-1])
    assert (timing.n_prompt, timing.n_kept, timing.n_cap, timing.n_worst) == (37, 37, 40, 40)
    assert_known(
        timing, 'plan_elapsed', 'predicted_prefill', 'predicted_decode_worst', 'queued', 'tokenize',
        'predicted_overhead', 'predicted_total_worst', 'predicted_decode_realised', 'prefill',
        'decode', 'decode_step_max', 'first_token', 'time_allowance', 'delivery_margin')
    assert timing.alpha == 0.0 and isnan(timing.evict) and isnan(timing.predicted_decode)
    assert timing.law_decode_step == [1e-5, 0.03] and timing.coefficients_stamp_ns == 5
    assert timing.decode_step_max <= timing.decode
    assert timing.queued + timing.prefill <= timing.first_token + 1e-3
    assert last.last_token_ns <= clock()


@pytest.mark.parametrize('clients, reason', [
    (True, FinishReason.CLIENT_CAP), (False, FinishReason.SERVER_CAP)])
def test_a_cap_ends_the_answer(
        engine: Engine, clock: Clock, clients: bool, reason: FinishReason) -> None:
    last, _ = finish(start(engine, clock, cap=3, clients=clients))
    assert last.ending.finish_reason == reason and last.timing.n_generated == 3
    assert last.text == 'The capital of'


def test_one_token_needs_no_decode_step(engine: Engine, clock: Clock) -> None:
    last, _ = finish(start(engine, clock, cap=1))
    assert last.text == 'The' and last.timing.n_generated == 1 and isnan(last.timing.decode)
    assert last.timing.predicted_decode_realised == 0.0


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(
        engine: Engine, clock: Clock) -> None:
    last, messages = finish(start(engine, clock, stop=[' of Fra']))
    assert last.ending.finish_reason == FinishReason.STOP_STRING
    assert last.text == shown(messages) == 'The capital'


def test_the_deadline_ends_a_prefill_between_two_chunks(engine: Engine, clock: Clock) -> None:
    run = start(engine, clock, LONG)
    for _ in range(2):      # its turn has come; the first chunk
        first, = run.advance()
        assert isinstance(first, Progress) and first.stage == Stage.PREFILL
    clock.now_ns += 700 * S
    last, = run.advance()
    assert isinstance(last, Finished) and last.ending.outcome == Outcome.DEADLINE_MISSED
    assert last.ending.error_code == ErrorCode.DEADLINE_MISSED and last.text == ''
    assert 'prefill' in last.ending.error_msg and isnan(last.timing.prefill)
    finish(start(engine, clock, cap=1))     # its place is free again


def test_the_deadline_ends_a_decoding_with_the_text_so_far(engine: Engine, clock: Clock) -> None:
    run = start(engine, clock, 'Tell me a story.')
    messages = [each for _ in range(4) for each in run.advance()]
    clock.jump_after(2, 700.0)              # in the middle of the next step
    *more, last = run.advance()
    assert isinstance(last, Finished) and last.ending.outcome == Outcome.DEADLINE_MISSED
    assert last.timing.n_generated == 4 and last.text.startswith(shown(messages + more))
    assert 'after 4 of at most 40 tokens' in last.ending.error_msg


def test_a_whole_answer_that_is_late_is_a_miss(engine: Engine, clock: Clock) -> None:
    run = start(engine, clock, cap=2)
    run.advance()
    run.advance()
    clock.jump_after(2, 700.0)
    last, = run.advance()
    assert isinstance(last, Finished) and last.ending.outcome == Outcome.DEADLINE_MISSED
    assert last.text == 'The capital' and last.timing.n_generated == 2


def test_a_dropped_query_gives_the_engine_back_at_once(engine: Engine, clock: Clock) -> None:
    run = start(engine, clock)
    run.advance()
    run.drop()
    last, = run.advance()
    assert isinstance(last, Finished) and last.ending.outcome == Outcome.CANCELED and run.done
    finish(start(engine, clock, cap=1))


def test_a_tight_budget_evicts_what_the_plan_says(engine: Engine, clock: Clock) -> None:
    # 99 steps of 0.1 s and 1e-4 s per cached token: 14.6 s at alpha 0, 10.7 s at alpha 0.95
    tight = planning(step_s=0.1, per_cached_s=1e-4)
    run = start(engine, clock, LONG, within_s=12.0, cap=100, plan_with=tight)
    messages: list[Message] = []
    while not any(isinstance(each, Planned) for each in messages):
        messages += run.advance()
    messages += run.advance()
    timing = next(each for each in messages if isinstance(each, Planned)).timing
    assert 0.0 < timing.alpha < 0.95 and timing.feasible
    assert timing.n_kept == kept_tokens(timing.n_prompt, timing.alpha) < timing.n_prompt
    assert timing.predicted_total_worst <= 12.0 - 0.02 and timing.evict > 0.0
    assert timing.predicted_evict == 0.002
    run.drop()
    finish(run)


def test_what_cannot_fit_is_at_risk_from_the_first_feedback_on(
        engine: Engine, clock: Clock) -> None:
    slow = planning(step_s=5.0, per_cached_s=0.01)
    last, messages = finish(start(engine, clock, LONG, within_s=60.0, cap=20, plan_with=slow))
    progress = [each for each in messages if isinstance(each, Progress)]
    assert progress[0].stage == Stage.PREFILL and progress[0].deadline_at_risk
    assert last.timing.deadline_at_risk and not last.timing.feasible
    assert last.timing.alpha == 0.95 and last.ending.outcome == Outcome.COMPLETED


def test_a_query_that_fails_frees_its_place_and_the_engine_goes_on(
        engine: Engine, clock: Clock) -> None:
    run = start(engine, clock)
    broken = QueryRun(engine, run.query, [10 ** 9], 5, planning(), clock=clock)
    last, _ = finish(broken)
    assert last.ending.outcome == Outcome.FAILED
    assert last.ending.error_code == ErrorCode.ENGINE_ERROR and last.ending.error_msg
    assert '\n' not in last.ending.error_msg
    assert finish(run)[0].text == 'The capital of France is Paris.'


def test_queries_that_share_their_steps_answer_as_each_alone(engine: Engine, clock: Clock) -> None:
    alone = [finish(start(engine, clock, text, cap=12))[0].text for text in (CAPITAL, LONG)]
    runs = [start(engine, clock, text, cap=12) for text in (CAPITAL, LONG)]
    texts: dict[int, str] = {}
    for run in runs:
        while run.next_unit is not Unit.STEP:
            run.advance()
    while not all(run.done for run in runs):
        for each in decode_together(runs):
            if isinstance(each, Finished):
                texts[len(texts)] = each.text
    assert sorted(texts.values()) == sorted(alone)
    stretches = [each for run in runs for each in run.timing.stretches]
    assert {each.width for each in stretches} >= {2}
    for run in runs:
        steps = sum(each.steps for each in run.timing.stretches)
        assert steps == run.timing.n_generated - 1
        assert sum(each.seconds for each in run.timing.stretches) == pytest.approx(
            run.timing.decode)


def test_who_is_dropped_leaves_the_shared_step_and_the_others_go_on(
        engine: Engine, clock: Clock) -> None:
    stays, leaves = (start(engine, clock, cap=6) for _ in range(2))
    for run in (stays, leaves):
        while run.next_unit is not Unit.STEP:
            run.advance()
    decode_together([stays, leaves])
    leaves.drop()
    messages = decode_together([stays, leaves])
    ended = [each for each in messages if isinstance(each, Finished)]
    assert [each.ending.outcome for each in ended] == [Outcome.CANCELED]
    assert stays.timing.stretches[-1].width == 1 and not stays.done
    finish(stays)


def test_a_soft_landing_cuts_at_a_sentence_before_the_deadline(
        engine: Engine, clock: Clock) -> None:
    slow = planning(step_s=0.5)
    run = start(engine, clock, 'Tell me a story.', within_s=20.0, cap=200, plan_with=slow,
                overrun=Overrun.SOFT_LANDING)
    messages: list[Message] = []
    while not run.done:
        messages += run.advance()
        clock.now_ns += S // 2      # a step takes as long as the law says
    last = messages[-1]
    assert isinstance(last, Finished) and last.ending.outcome == Outcome.TRUNCATED
    assert last.ending.finish_reason == FinishReason.LANDED
    assert last.text.rstrip()[-1] in '.!?"'
    assert shown(messages).startswith(last.text)


def test_a_late_answer_under_skip_next_is_whole_and_a_miss(engine: Engine, clock: Clock) -> None:
    run = start(engine, clock, cap=4, overrun=Overrun.SKIP_NEXT, overrun_ns=900 * S)
    run.advance()
    run.advance()
    clock.now_ns += 700 * S
    last, messages = finish(run)
    assert last.ending.outcome == Outcome.DEADLINE_MISSED and last.timing.n_generated == 4
    assert last.ending.finish_reason == FinishReason.SERVER_CAP
    assert 'too late' in last.ending.error_msg
    assert all(each.stage == Stage.LATE for each in messages if isinstance(each, Progress))
