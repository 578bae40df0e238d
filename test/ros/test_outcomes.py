# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Every outcome and every error code of one server, over DDS, between two processes."""

from math import inf, nan
import os
import signal
import threading
import time
from typing import Any

from builtin_interfaces.msg import Duration, Time
import pytest
from ros_serving import Server, STORY, until, WAIT_S

from timebill_ros.action import Query as QueryAction
from timebill_ros.client import Answer
from timebill_ros.msg import ChatMessage, ExecutorStatus
from timebill_ros.nodes.conversions import duration_s
from timebill_ros.query import Admission, ErrorCode, FinishReason, Outcome

PARIS = 'What is the capital of France?'
LONG = 'The robot saw a red chair in the room. ' * 400


def test_a_whole_answer(server: Server) -> None:
    answer = server.client.ask(PARIS, within=WAIT_S)
    assert answer.outcome == Outcome.COMPLETED
    assert 'Paris' in answer.response
    assert answer.finish_reason == FinishReason.END_TOKEN
    assert (answer.error_code, answer.error_msg) == (ErrorCode.NONE, '')
    timing = answer.timing
    assert (timing.n_prompt, timing.alpha) == (37, 0.0)
    assert timing.n_worst == min(512, 5 * timing.n_predicted) if timing.n_predicted else 512
    assert 0.0 < timing.prefill < timing.total < answer.elapsed_s < WAIT_S
    assert timing.slack == pytest.approx(timing.time_allowance - timing.total, abs=1e-3)
    assert timing.predicted_total_worst > 0.0


@pytest.mark.parametrize(
    ('fields', 'reason'),
    [
        ({'max_new_tokens': 3}, FinishReason.CLIENT_CAP),
        ({'stop': ['lighthouse']}, FinishReason.STOP_STRING),
    ],
)
def test_an_answer_that_the_client_bounds(
    server: Server, fields: dict[str, Any], reason: FinishReason
) -> None:
    answer = server.client.ask(STORY, within=WAIT_S, **fields)
    assert (answer.outcome, answer.finish_reason) == (Outcome.COMPLETED, reason)
    assert not any(each in answer.response for each in fields.get('stop', []))


def test_text_streams_in_the_feedback(server: Server) -> None:
    seen: list[QueryAction.Feedback] = []
    answer = server.client.ask(
        STORY, within=WAIT_S, max_new_tokens=12, stream=True, on_feedback=seen.append
    )
    streamed = ''.join(each.text for each in seen)
    assert answer.response.startswith(streamed) and len(streamed) > 0
    assert [each.stage for each in seen] == sorted(each.stage for each in seen)
    assert all(0 < each.time_left.sec < WAIT_S and not each.deadline_missed for each in seen)
    assert any(duration_s(each.predicted_finish) > 0.0 for each in seen)


def test_without_streaming_there_is_no_text_in_the_feedback(server: Server) -> None:
    seen: list[QueryAction.Feedback] = []
    server.client.ask(STORY, within=WAIT_S, max_new_tokens=12, on_feedback=seen.append)
    assert seen and not any(each.text for each in seen)


def test_a_conversation(server: Server) -> None:
    question = ChatMessage(role='user', content='And of Italy?')
    alone = server.client.ask(within=WAIT_S, max_new_tokens=24, messages=[question])
    answer = server.client.ask(
        within=WAIT_S,
        max_new_tokens=24,
        system_prompt='You answer questions.',
        messages=[
            ChatMessage(role='user', content=PARIS),
            ChatMessage(role='assistant', content='The capital of France is Paris.'),
            question,
        ],
    )
    assert answer.outcome == Outcome.COMPLETED
    assert answer.timing.n_prompt > alone.timing.n_prompt
    assert 'Rome' in answer.response


def test_a_miss_comes_with_the_text_so_far(server: Server) -> None:
    seen: list[QueryAction.Feedback] = []
    too_short_s = server.time_for_tokens(120)
    answer = server.client.ask(STORY, within=too_short_s, on_feedback=seen.append)
    assert (answer.outcome, answer.error_code) == (
        Outcome.DEADLINE_MISSED,
        ErrorCode.DEADLINE_MISSED,
    )
    assert 'time_allowance = ' in answer.error_msg and 'delivery_margin_s = ' in answer.error_msg
    assert answer.response
    assert seen[-1].deadline_at_risk


def test_what_cannot_fit_is_infeasible_at_once(server: Server) -> None:
    answer = server.client.ask(LONG, within=0.4)
    assert (answer.outcome, answer.error_code) == (Outcome.INFEASIBLE, ErrorCode.BUDGET_TOO_SMALL)
    assert 'time_allowance is ' in answer.error_msg
    assert answer.elapsed_s < 0.4


def test_what_might_not_fit_is_infeasible_if_it_has_to_be_guaranteed(server: Server) -> None:
    too_short_s = server.time_for_tokens(120)
    assert (
        server.client.ask(STORY, within=too_short_s, admission=Admission.GUARANTEED).outcome
        == Outcome.INFEASIBLE
    )
    assert (
        server.client.ask(
            PARIS, within=WAIT_S, admission=Admission.GUARANTEED, max_new_tokens=8
        ).outcome
        == Outcome.COMPLETED
    )


def test_a_prompt_beyond_the_context_is_invalid(server: Server) -> None:
    answer = server.client.ask('word ' * 9000, within=WAIT_S)
    assert (answer.outcome, answer.error_code) == (Outcome.INVALID, ErrorCode.PROMPT_TOO_LONG)
    assert '8192' in answer.error_msg


INVALID: list[tuple[dict[str, Any], ErrorCode, str]] = [
    ({'prompt': ''}, ErrorCode.INVALID_PROMPT, 'prompt'),
    ({'messages': [ChatMessage(role='user', content='hi')]}, ErrorCode.INVALID_PROMPT, 'messages'),
    (
        {'prompt': '', 'messages': [ChatMessage(role='robot', content='hi')]},
        ErrorCode.INVALID_PROMPT,
        'role',
    ),
    ({'prompt': 'x' * 2_000_000}, ErrorCode.INVALID_PROMPT, 'max_prompt_bytes = 1048576'),
    ({'time_allowance': Duration()}, ErrorCode.INVALID_TIME_ALLOWANCE, 'time_allowance'),
    ({'time_allowance': Duration(sec=-5)}, ErrorCode.INVALID_TIME_ALLOWANCE, 'time_allowance'),
    (
        {'time_allowance': Duration(sec=5, nanosec=10**9)},
        ErrorCode.INVALID_TIME_ALLOWANCE,
        'nanosec',
    ),
    ({'sent_at': Time(sec=1)}, ErrorCode.INVALID_SENT_AT, 'sent_at'),
    ({'max_new_tokens': 2**32 - 1}, ErrorCode.INVALID_MAX_NEW_TOKENS, '8192'),
    ({'admission': 9}, ErrorCode.INVALID_ADMISSION, 'GUARANTEED = 2'),
    ({'overrun': 9}, ErrorCode.INVALID_OVERRUN, 'KILL = 1'),
    ({'alpha_max': 0.96}, ErrorCode.INVALID_ALPHA_MAX, '0.95'),
    ({'alpha_max': nan}, ErrorCode.INVALID_ALPHA_MAX, 'alpha_max'),
    ({'min_tier': 'int2'}, ErrorCode.INVALID_MIN_TIER, 'fp32'),
    ({'client_id': 'x' * 257}, ErrorCode.INVALID_CLIENT_ID, '257 bytes'),
    ({'stop': ['a'] * 17}, ErrorCode.INVALID_STOP, '16'),
    ({'temperature': 11.0}, ErrorCode.INVALID_SAMPLING, 'temperature = 11'),
    ({'temperature': inf}, ErrorCode.INVALID_SAMPLING, 'temperature'),
    ({'top_p': 1.5}, ErrorCode.INVALID_SAMPLING, 'top_p'),
    ({'top_k': -2}, ErrorCode.INVALID_SAMPLING, 'top_k'),
    ({'repetition_penalty': -1.0}, ErrorCode.INVALID_SAMPLING, 'repetition_penalty'),
    ({'seed': -2}, ErrorCode.INVALID_SAMPLING, 'seed'),
]


@pytest.mark.parametrize(('fields', 'code', 'named'), INVALID)
def test_a_field_out_of_its_limits_is_invalid(
    server: Server, fields: dict[str, Any], code: ErrorCode, named: str
) -> None:
    result = server.watcher.send(**{'prompt': PARIS, 'time_allowance': Duration(sec=30), **fields})
    assert (result.outcome, result.error_code) == (Outcome.INVALID, code)
    assert named in result.error_msg
    assert server.watcher.timing_of(bytes(result.timing.goal_id.uuid.tolist())).error_code == code


def test_bad_input_disturbs_nothing_else(server: Server) -> None:
    running = server.ask_and_wait_for_text(max_new_tokens=40)
    for fields, code, _ in INVALID:
        result = server.watcher.send(
            **{'prompt': PARIS, 'time_allowance': Duration(sec=30), **fields}
        )
        assert result.error_code == code
    assert running.result(WAIT_S).outcome == Outcome.COMPLETED


def test_a_budget_within_the_delivery_margin_is_a_miss(server: Server) -> None:
    result = server.watcher.send(prompt=PARIS, time_allowance=Duration(nanosec=1000))
    assert result.outcome == Outcome.DEADLINE_MISSED
    assert 'delivery_margin_s' in result.error_msg


def test_a_running_query_is_canceled_at_once(server: Server) -> None:
    pending = server.ask_and_wait_for_text()
    before_s = time.monotonic()
    assert pending.cancel()
    answer = pending.result(WAIT_S)
    assert time.monotonic() - before_s < 1.0
    assert (answer.outcome, answer.error_code) == (Outcome.CANCELED, ErrorCode.CANCELED_BY_CLIENT)
    assert answer.response and answer.error_msg
    assert not pending.cancel()


def test_a_query_in_a_long_prefill_is_canceled_at_once(server: Server) -> None:
    begun = threading.Event()
    pending = server.client.ask_async(LONG, within=WAIT_S, on_feedback=lambda _: begun.set())
    assert begun.wait(WAIT_S)
    before_s = time.monotonic()
    pending.cancel()
    assert pending.result(WAIT_S).outcome == Outcome.CANCELED
    assert time.monotonic() - before_s < 1.0


def test_a_waiting_query_is_canceled_and_the_running_one_is_not(server: Server) -> None:
    running = server.ask_and_wait_for_text(max_new_tokens=40)
    waiting = server.client.ask_async(PARIS, within=WAIT_S)
    time.sleep(0.1)
    waiting.cancel()
    assert waiting.result(WAIT_S).outcome == Outcome.CANCELED
    assert running.result(WAIT_S).outcome == Outcome.COMPLETED


def test_the_deadline_holds_in_the_queue_and_during_anothers_prefill(server: Server) -> None:
    begun = threading.Event()
    running = server.client.ask_async(LONG, within=WAIT_S, on_feedback=lambda _: begun.set())
    assert begun.wait(WAIT_S)
    waiting = server.client.ask(PARIS, within=0.3)
    running.cancel()
    assert waiting.outcome in (Outcome.DEADLINE_MISSED, Outcome.INFEASIBLE)
    assert waiting.elapsed_s < 0.3 + server.client.late_wait_s + 0.3


def goal_id_of(answer: Answer) -> bytes:
    assert answer.message is not None
    return bytes(answer.message.goal_id.uuid.tolist())


def test_a_burst_loses_nothing_and_a_cancel_is_answered_meanwhile(server: Server) -> None:
    running = server.ask_and_wait_for_text()
    burst = [server.client.ask_async(PARIS, within=WAIT_S, max_new_tokens=2) for _ in range(200)]
    canceled_s = time.monotonic()
    burst[0].cancel()
    assert burst[0].result(WAIT_S).outcome == Outcome.CANCELED
    assert time.monotonic() - canceled_s < 2.0
    # While the engine is busy with the running query, all that the queue cannot hold is skipped.
    until(lambda: sum(pending.done() for pending in burst) >= 192)
    running.cancel()
    assert running.result(WAIT_S).outcome == Outcome.CANCELED
    answers = [pending.result(WAIT_S) for pending in burst]
    outcomes = [answer.outcome for answer in answers[1:]]
    assert set(outcomes) == {Outcome.COMPLETED, Outcome.SKIPPED}
    # The queue holds eight, the canceled one among them, whose place another may have taken.
    assert 7 <= outcomes.count(Outcome.COMPLETED) <= 8
    for answer in answers:
        if answer.outcome == Outcome.SKIPPED:
            assert answer.error_code == ErrorCode.QUEUE_FULL
            assert 'max_queue = 8' in answer.error_msg
    goals = [goal_id_of(answer) for answer in [running.result(), *answers]]
    assert len(set(goals)) == 201
    for goal in goals:
        server.watcher.timing_of(goal)
    told = [bytes(each.goal_id.uuid.tolist()) for each in server.watcher.timings]
    assert all(told.count(goal) == 1 for goal in goals)


def test_a_killed_engine_fails_its_queries_and_is_replaced(server: Server) -> None:
    running = server.ask_and_wait_for_text()
    waiting = server.client.ask_async(PARIS, within=WAIT_S)
    time.sleep(0.1)
    os.kill(server.engine_pid, signal.SIGKILL)
    for pending in (running, waiting):
        answer = pending.result(WAIT_S)
        assert (answer.outcome, answer.error_code) == (Outcome.FAILED, ErrorCode.ENGINE_DIED)
        assert 'SIGKILL' in answer.error_msg
    at_once = server.client.ask(PARIS, within=WAIT_S)
    assert (at_once.outcome, at_once.error_code) == (Outcome.FAILED, ErrorCode.ENGINE_NOT_READY)
    assert at_once.elapsed_s < 1.0 and 'not ready' in at_once.error_msg
    server.wait_until_ready()
    assert 'Paris' in server.client.ask(PARIS, within=WAIT_S).response


def test_with_a_stopped_engine_queries_end_in_time_and_it_is_replaced(server: Server) -> None:
    hangs = server.ask_and_wait_for_text()
    stopped = server.engine_pid
    restarts = server.watcher.statuses[-1].engine_restarts
    os.kill(stopped, signal.SIGSTOP)
    stopped_s = time.monotonic()
    in_time = server.client.ask(PARIS, within=1.0)
    assert in_time.outcome == Outcome.DEADLINE_MISSED
    assert in_time.elapsed_s < 1.0 + server.client.late_wait_s + 0.3
    answer = hangs.result(WAIT_S)
    assert (answer.outcome, answer.error_code) == (Outcome.FAILED, ErrorCode.ENGINE_HUNG)
    assert 'engine_timeout_s = 5' in answer.error_msg
    assert 4.5 < time.monotonic() - stopped_s < 15.0
    assert answer.response
    server.wait_until_ready()
    assert server.engine_pid != stopped
    assert 'Paris' in server.client.ask(PARIS, within=WAIT_S).response
    until(lambda: server.watcher.statuses[-1].engine_restarts > restarts)
    until(lambda: server.watcher.statuses[-1].engine_state == ExecutorStatus.READY)
