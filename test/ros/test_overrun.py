# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What a query may ask for at its deadline, and who may ask how much, over DDS."""

from collections.abc import Iterator
import threading
import time

from builtin_interfaces.msg import Duration
import pytest
from ros_serving import running_server, Server, STORY, until, WAIT_S

from timebill_ros.action import Query as QueryAction
from timebill_ros.client import Answer, TimeBillClient
from timebill_ros.nodes.conversions import duration_s, time_msg
from timebill_ros.query import Admission, ErrorCode, FinishReason, Outcome, Overrun

PARIS = 'What is the capital of France?'
MAX_OVERRUN_S = 1.0
SHARE = 3


@pytest.fixture(scope='module')
def server(ros_domain: int) -> Iterator[Server]:
    """Give the module a server with a share for each client."""
    with running_server(
        'late', max_overrun_s=MAX_OVERRUN_S, max_queue_per_client=SHARE, n_max=4000
    ) as running:
        yield running


def test_skip_next_says_that_it_is_late_and_runs_on_while_others_are_skipped(
    server: Server,
) -> None:
    seen: list[tuple[float, QueryAction.Feedback]] = []
    late = threading.Event()

    def note(feedback: QueryAction.Feedback) -> None:
        seen.append((time.monotonic(), feedback))
        if feedback.deadline_missed:
            late.set()

    asked_s = time.monotonic()
    pending = server.client.ask_async(
        STORY, within=1.0, overrun=Overrun.SKIP_NEXT, on_feedback=note
    )
    assert late.wait(WAIT_S)
    skipped = server.client.ask(PARIS, within=WAIT_S)
    answer = pending.result(WAIT_S)
    assert (skipped.outcome, skipped.error_code) == (Outcome.SKIPPED, ErrorCode.LATE_JOB_RUNNING)
    assert skipped.elapsed_s < 0.5
    at_s, first = next(each for each in seen if each[1].deadline_missed)
    assert first.stage == QueryAction.Feedback.STAGE_LATE
    assert 0.9 < at_s - asked_s < 1.3 and duration_s(first.time_left) < 0.1
    assert {each.stage for _, each in seen if each.deadline_missed} == {first.stage}
    assert answer.outcome == Outcome.DEADLINE_MISSED
    assert answer.timing.n_generated > first.n_generated and answer.response
    assert 0.5 < answer.lateness_s < MAX_OVERRUN_S + 0.5
    assert 'max_overrun_s = 1 s' in answer.error_msg
    assert answer.timing.slack < 0.0
    assert 'Paris' in server.client.ask(PARIS, within=WAIT_S).response


def test_a_late_query_that_comes_to_its_end_brings_its_whole_text(server: Server) -> None:
    whole = server.client.ask(STORY, within=WAIT_S, max_new_tokens=60)
    took_s = whole.timing.total + server.client.late_wait_s
    answer = server.client.ask(
        STORY, within=0.7 * took_s, max_new_tokens=60, overrun=Overrun.SKIP_NEXT
    )
    if answer.outcome == Outcome.DEADLINE_MISSED:       # else the machine was faster this time
        assert answer.finish_reason in (FinishReason.CLIENT_CAP, FinishReason.NONE)
        assert whole.response.startswith(answer.response[:40])


def test_a_soft_landing_is_in_time_and_says_that_it_is_cut(server: Server) -> None:
    too_short_s = server.time_for_tokens(200)

    def lands() -> Answer:
        return server.client.ask(STORY, within=too_short_s, overrun=Overrun.SOFT_LANDING)

    answer = next((each for each in (lands() for _ in range(3)) if each.ok), None)
    assert answer is not None
    assert (answer.outcome, answer.finish_reason) == (Outcome.TRUNCATED, FinishReason.LANDED)
    assert answer.elapsed_s < too_short_s and answer.lateness_s == 0.0
    assert answer.response.rstrip()[-1] in '.!?"*”'
    assert (answer.error_code, answer.error_msg) == (ErrorCode.NONE, '')


def test_the_budget_runs_from_sent_at(server: Server) -> None:
    with TimeBillClient(namespace='late', stamp=True) as client:
        assert client.wait_for_server(WAIT_S)
        answer = client.ask(PARIS, within=20.0)
    assert answer.ok and answer.timing.time_allowance == pytest.approx(20.0)
    assert answer.timing.slack <= 20.0 - answer.timing.total
    second = 1_000_000_000
    for ago_s, code in ((8, ErrorCode.DEADLINE_MISSED), (3600, ErrorCode.INVALID_SENT_AT),
                        (-60, ErrorCode.INVALID_SENT_AT)):
        result = server.watcher.send(
            prompt=PARIS, time_allowance=Duration(sec=8),
            sent_at=time_msg(time.time_ns() - ago_s * second))
        assert result.error_code == code, result.error_msg


def test_a_client_has_its_share_and_others_have_theirs(server: Server) -> None:
    asked = [
        server.client.ask_async(STORY, within=WAIT_S, client_id='greedy') for _ in range(SHARE + 1)]
    refused = asked[-1].result(WAIT_S)
    assert (refused.outcome, refused.error_code) == (Outcome.SKIPPED, ErrorCode.QUEUE_FULL)
    assert 'client_id = "greedy"' in refused.error_msg
    assert server.client.ask(PARIS, within=WAIT_S, client_id='other').ok
    for each in asked[:-1]:
        each.cancel()
    assert {each.result(WAIT_S).outcome for each in asked[:-1]} == {Outcome.CANCELED}


def test_queries_decode_together(server: Server) -> None:
    asked = [
        server.client.ask_async(STORY, within=WAIT_S, max_new_tokens=60, client_id=str(number))
        for number in range(3)]
    answers = [each.result(WAIT_S) for each in asked]
    assert all(answer.ok for answer in answers)
    assert len({answer.response for answer in answers}) == 1
    assert any(stretch.width > 1 for answer in answers for stretch in answer.timing.stretches)


def test_a_cancel_storm_leaves_nothing_behind(server: Server) -> None:
    asked = [
        server.client.ask_async(
            STORY, within=WAIT_S, max_new_tokens=20, client_id=str(number),
            admission=Admission.GUARANTEED if number % 4 == 0 else Admission.BEST_EFFORT)
        for number in range(12)]
    for number, each in enumerate(asked):
        if number % 2:
            time.sleep(0.03)
            each.cancel()
    outcomes = [each.result(WAIT_S).outcome for each in asked]
    assert set(outcomes) <= {
        Outcome.COMPLETED, Outcome.CANCELED, Outcome.SKIPPED, Outcome.INFEASIBLE}
    statuses = server.watcher.statuses
    until(lambda: statuses[-1].running == statuses[-1].queue_depth == 0)
    assert 'Paris' in server.client.ask(PARIS, within=WAIT_S).response
