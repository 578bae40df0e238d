# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The node's record of a goal: what is handed over when, and what the book counts."""

from math import isnan
from typing import Any

import pytest

from timebill_ros.executor.messages import Finished, Progress
from timebill_ros.nodes.goal_record import GoalBook, GoalRecord
from timebill_ros.query import Ending, ErrorCode, Outcome, Query, QueryTiming, Stage, Turn

S = 1_000_000_000
PLAN_DEADLINE_NS = 3 * S


def record(name: str = 'a', plan_deadline_ns: int = PLAN_DEADLINE_NS) -> GoalRecord:
    made = GoalRecord(name, handle=None, arrival_ns=1 * S, stream=False)
    made.query = Query(
        name,
        [Turn('user', 'hi')],
        1 * S,
        plan_deadline_ns + S // 10,
        plan_deadline_ns,
        max_new_tokens=9,
        cap_is_clients=True,
    )
    return made


def progress(stage: Stage, text: str = '', n_generated: int = 0, at_risk: bool = False) -> Progress:
    return Progress('a', stage, text, n_generated, 0, at_risk, sent_ns=2 * S)


@pytest.mark.parametrize('outcome', list(Outcome))
def test_from_the_plan_deadline_on_nothing_but_a_miss_is_handed_over(outcome: Outcome) -> None:
    for late_ns in (0, 1, S):
        goal = record()
        goal.ending = Ending(outcome, error_code=ErrorCode.ENGINE_ERROR, error_msg='it said')
        handed = goal.hand_over(PLAN_DEADLINE_NS + late_ns)
        assert handed.outcome == Outcome.DEADLINE_MISSED
        assert handed.error_msg


@pytest.mark.parametrize('outcome', list(Outcome))
def test_before_it_the_ending_stands(outcome: Outcome) -> None:
    goal = record()
    goal.ending = Ending(outcome)
    assert goal.hand_over(PLAN_DEADLINE_NS - 1).outcome == outcome


def test_an_invalid_goal_has_no_deadline() -> None:
    goal = GoalRecord('a', None, 1 * S, False)
    goal.ending = Ending(Outcome.INVALID)
    assert goal.hand_over(99 * S).outcome == Outcome.INVALID


@pytest.mark.parametrize(
    ('message', 'where'),
    [
        (None, 'waiting for the engine'),
        (progress(Stage.PREFILL), 'reading the prompt'),
        (progress(Stage.DECODE, 'x', 5), '5 tokens'),
    ],
)
def test_a_miss_says_how_far_it_got(message: Any, where: str) -> None:
    goal = record()
    if message is not None:
        goal.progress(message)
    assert where in goal.missed().error_msg
    assert 'time_allowance = 2.1 s' in goal.missed().error_msg


def test_text_is_kept_as_it_comes_and_change_is_noticed() -> None:
    goal = record()
    assert goal.progress(progress(Stage.PREFILL))
    assert not goal.progress(progress(Stage.PREFILL))
    assert goal.progress(progress(Stage.DECODE, 'one', 1))
    assert goal.progress(progress(Stage.DECODE, ' two', 2, at_risk=True))
    assert (goal.text, goal.unsent_text, goal.n_generated) == ('one two', 'one two', 2)


def test_the_engines_last_word_changes_measurements_only_once_the_goal_has_ended() -> None:
    goal = record()
    goal.engine_has_it = True
    goal.progress(progress(Stage.DECODE, 'partial', 1))
    goal.ending = Ending(Outcome.DEADLINE_MISSED)
    goal.hand_over(PLAN_DEADLINE_NS)
    goal.finished(
        Finished('a', Ending(Outcome.COMPLETED), 'whole', QueryTiming(prefill=0.5), 5 * S)
    )
    assert (goal.text, goal.ending.outcome) == ('partial', Outcome.DEADLINE_MISSED)
    timing = goal.final_timing()
    assert timing.prefill == 0.5
    assert (timing.total, timing.slack) == (2.0, pytest.approx(0.1))
    assert timing.last_token_to_result == 1.0
    assert timing.delivery_margin == pytest.approx(0.1)


def test_a_last_word_that_the_deadline_overtakes_is_known_from_one_that_it_causes() -> None:
    goal = record()
    in_time = Finished(
        'a', Ending(Outcome.TRUNCATED), '', QueryTiming(), 0, PLAN_DEADLINE_NS - 1)
    assert not goal.overtook(in_time)
    goal.ending = goal.missed()
    assert goal.overtook(in_time)
    assert not goal.overtook(
        Finished('a', Ending(Outcome.CANCELED), '', QueryTiming(), 0, PLAN_DEADLINE_NS))
    assert not goal.overtook(Finished('a', Ending(Outcome.INFEASIBLE), '', QueryTiming(), 0))
    goal.finished(in_time)
    assert goal.engine_ended_ns == 0        # the node ended it


def test_a_late_goal_goes_on_until_its_overrun_is_over() -> None:
    goal = record()
    assert goal.query is not None
    goal.query.overrun_ns = 2 * S
    assert not goal.may_run_late            # what has not begun is simply missed
    goal.progress(progress(Stage.DECODE, 'one', 1))
    assert goal.may_run_late and goal.due_ns == PLAN_DEADLINE_NS
    goal.run_late()
    assert goal.due_ns == PLAN_DEADLINE_NS + 2 * S
    goal.progress(progress(Stage.DECODE, ' two', 2))
    assert (goal.stage, goal.text) == (Stage.LATE, 'one two')
    assert 'max_overrun_s = 2 s ran out 2 tokens' in goal.missed().error_msg
    late = Ending(Outcome.DEADLINE_MISSED, error_msg='whole 0.5 s too late')
    goal.ending = late
    assert goal.hand_over(PLAN_DEADLINE_NS + S // 2) is late


def test_the_book_counts_by_client_and_knows_who_is_late() -> None:
    book = GoalBook()
    for number, client in enumerate(('arm', 'arm', '')):
        each = record(str(number))
        assert each.query is not None
        each.query.client_id = client
        book.add(each)
    assert [book.of_client(each) for each in ('arm', '', 'base')] == [2, 1, 0]
    assert book.late() is None
    second = book.find('1')
    assert second is not None
    second.run_late()
    assert book.late() is second
    second.ending = Ending(Outcome.CANCELED)
    assert book.late() is None and book.of_client('arm') == 1


def test_without_a_token_the_last_one_took_no_time() -> None:
    goal = record()
    goal.ending = goal.missed()
    goal.hand_over(PLAN_DEADLINE_NS)
    assert isnan(goal.final_timing().last_token_to_result)


def test_the_book_counts_who_waits_beside_the_running_one() -> None:
    book = GoalBook()
    assert not book.is_full(0)
    for number in range(3):
        book.add(record(str(number), (3 + number) * S))
    assert (book.running(), book.waiting()) == (0, 2)
    assert book.is_full(2) and not book.is_full(3)
    first = book.find('0')
    assert first is not None
    first.progress(progress(Stage.PREFILL))
    assert (book.running(), book.waiting()) == (1, 2)
    assert book.next_due_ns() == 3 * S
    first.ending = Ending(Outcome.CANCELED)
    assert (book.running(), book.waiting()) == (0, 1)
    assert book.next_due_ns() == 4 * S
    assert len(book.all()) == 3
    book.forget(first)
    assert book.find('0') is None
