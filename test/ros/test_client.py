# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Client library and ``timebill ask``: with a server, without one, with one that is stuck."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
import json
from math import nan
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from rcl_interfaces.msg import Parameter as ParameterMsg
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from ros_serving import finished, Server, STORY, until, WAIT_S, Watcher

from timebill_ros.cli.server_process import python_command, ServerProcess
from timebill_ros.client import Answer, TimeBillClient
from timebill_ros.msg import QueryTiming as QueryTimingMsg
from timebill_ros.nodes.parameters import declare_parameters
from timebill_ros.query import ErrorCode, Outcome

PARIS = 'What is the capital of France?'


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a process for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def timebill(*arguments: str | bytes, text_in: bytes = b'') -> subprocess.CompletedProcess[bytes]:
    """Run the command line in a process of its own."""
    main = 'import sys; from timebill_ros.cli import main; sys.exit(main())'
    safe_path = ['-P'] if sys.version_info >= (3, 11) else []
    return subprocess.run(
        [sys.executable, *safe_path, '-c', main, *arguments],
        input=text_in,
        capture_output=True,
        timeout=WAIT_S,
        check=False,
    )


# --- without a server


def test_without_a_server_the_answer_says_so_in_time(ros_domain: int) -> None:
    with TimeBillClient(namespace='nobody', server_wait_s=0.3) as client:
        answer = client.ask(PARIS, within=30.0)
        assert (answer.outcome, answer.error_code) == (Outcome.FAILED, ErrorCode.ENGINE_NOT_READY)
        assert '/nobody/timebill/query' in answer.error_msg
        assert 0.3 <= answer.elapsed_s < 1.0
        assert client.ask(PARIS, within=0.1).elapsed_s < 0.3
        assert not client.wait_for_server(0.1)


@pytest.mark.parametrize('within', [0.0, -1.0, nan, float('inf')])
def test_no_budget_is_invalid_at_once(ros_domain: int, within: float) -> None:
    with TimeBillClient(namespace='nobody') as client:
        answer = client.ask(PARIS, within=within)
        assert (
            answer.error_code == ErrorCode.INVALID_TIME_ALLOWANCE and 'within' in answer.error_msg
        )


def test_a_query_that_waits_for_a_server_can_be_canceled(ros_domain: int) -> None:
    with TimeBillClient(namespace='nobody') as client:
        pending = client.ask_async(PARIS, within=30.0)
        assert pending.cancel()
        assert pending.result(1.0).outcome == Outcome.CANCELED


def test_a_closed_client_answers_what_was_open(ros_domain: int) -> None:
    client = TimeBillClient(namespace='nobody')
    pending = client.ask_async(PARIS, within=30.0)
    client.close()
    assert pending.result(1.0).outcome == Outcome.FAILED
    client.close()


# --- with one


def test_in_a_callback_of_a_node_that_is_being_spun(server: Server) -> None:
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = Node('planner', context=context, namespace='robot')
    client = TimeBillClient(node)
    assert client.action_name == '/robot/timebill/query'
    answers: list[Answer] = []
    timer = node.create_timer(0.01, lambda: answers.append(client.ask(PARIS, within=WAIT_S)))
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    while not answers:
        executor.spin_once()
    assert answers[0].outcome == Outcome.COMPLETED
    timer.cancel()
    client.close()
    executor.shutdown()
    node.destroy_node()
    context.shutdown()


def test_from_several_threads_at_once(server: Server) -> None:
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(server.client.ask, PARIS, within=WAIT_S) for _ in range(6)]
        assert [each.result().outcome for each in asked] == [Outcome.COMPLETED] * 6


def test_the_states_of_everybodys_goals_are_not_read_and_nothing_is_kept_of_ended_ones(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, set[str]]] = []
    with TimeBillClient(namespace=server.namespace) as client:
        actions = client._client
        take = actions.take_data

        def watched() -> dict[str, Any]:
            had_status = actions._is_status_ready
            taken = take()
            seen.append((had_status, set(taken)))
            return taken

        assert client.wait_for_server(WAIT_S)
        monkeypatch.setattr(actions, 'take_data', watched)
        for _ in range(3):
            assert client.ask('', within=WAIT_S).outcome == Outcome.INVALID
        assert not actions._goal_handles
    assert any(had_status for had_status, _ in seen), 'rclpy no longer has it where we look'
    assert all('status' not in taken for _, taken in seen)


def test_the_first_query_of_a_new_client_is_answered(server: Server) -> None:
    def ask_once(_: int) -> Outcome:
        with TimeBillClient(namespace=server.namespace) as client:
            return client.ask('', within=WAIT_S).outcome

    # many at once, so that discovering them takes the server a while
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask_once, range(24))) == {Outcome.INVALID}


def test_a_server_that_does_not_hear_a_new_client_gets_no_goal_of_it(server: Server) -> None:
    with TimeBillClient(namespace=server.namespace) as client:
        until(client._client.server_is_ready)
        with stopped(server.node_pid):
            assert not client.wait_for_server(0.3)
            answer = client.ask(PARIS, within=0.3)
            assert answer.error_code == ErrorCode.ENGINE_NOT_READY
            assert 'hangs' in answer.error_msg
        assert client.wait_for_server(WAIT_S)
        assert client.ask('', within=WAIT_S).outcome == Outcome.INVALID


def test_a_stuck_server_is_given_up_in_time(server: Server) -> None:
    with stopped(server.node_pid):
        answer = server.client.ask(PARIS, within=0.5)
    assert (answer.outcome, answer.error_code) == (
        Outcome.DEADLINE_MISSED,
        ErrorCode.DELIVERED_LATE,
    )
    assert 'within = 0.5 s' in answer.error_msg
    assert 0.5 <= answer.elapsed_s < 0.5 + server.client.late_wait_s + 0.3
    assert server.client.ask(PARIS, within=WAIT_S).outcome == Outcome.COMPLETED


def test_what_a_stuck_server_says_late_is_not_passed_off_as_an_answer(server: Server) -> None:
    pending = server.ask_and_wait_for_text(within=2.0)
    with stopped(server.node_pid):
        time.sleep(2.2)
    answer = pending.result(WAIT_S)
    assert answer.outcome == Outcome.DEADLINE_MISSED


def test_parameters_are_checked(server: Server) -> None:
    parameters = AsyncParameterClient(server.watcher.node, '/robot/timebill')
    assert parameters.wait_for_services(WAIT_S)

    def set_to(name: str, value: object) -> tuple[bool, str]:
        message: ParameterMsg = Parameter(name, value=value).to_parameter_msg()
        (result,) = finished(parameters.set_parameters([message])).results
        return result.successful, result.reason

    assert set_to('max_queue', 3) == (True, '')
    assert set_to('max_queue', 8) == (True, '')
    for name, value in (
        ('max_queue', -1),
        ('alpha_max', 0.99),
        ('delivery_margin_s', nan),
        ('default_admission', 'maybe'),
        ('model', 'another'),
        ('prefill_tier', 'int16'),
    ):
        successful, reason = set_to(name, value)
        assert not successful and reason
    assert 'best_effort' in set_to('default_admission', 'maybe')[1]


def test_a_fixed_tier_that_the_engine_does_not_keep_is_named(server: Server) -> None:
    context = server.watcher.context
    for tier, named in (('int8', True), ('int4', False), ('', False)):
        node = Node(
            'fixed', context=context, parameter_overrides=[
                Parameter('policy', value='fixed'), Parameter('fixed_tier', value=tier)])
        said = declare_parameters(node).unkept_tier(['fp32', 'int4'])
        node.destroy_node()
        assert ('fixed_tier = int8' in said and 'fp32, int4' in said) == named == bool(said)


def test_a_parameter_holds_from_the_next_query_on(server: Server) -> None:
    parameters = AsyncParameterClient(server.watcher.node, '/robot/timebill')
    assert parameters.wait_for_services(WAIT_S)
    too_short_s = server.time_for_tokens(120)
    for value, expected in (
        ('guaranteed', Outcome.INFEASIBLE),
        ('best_effort', Outcome.DEADLINE_MISSED),
    ):
        finished(parameters.set_parameters([Parameter('default_admission', value=value)]))
        assert server.client.ask(STORY, within=too_short_s).outcome == expected


def test_text_is_streamed_no_more_often_than_asked(server: Server) -> None:
    parameters = AsyncParameterClient(server.watcher.node, '/robot/timebill')
    assert parameters.wait_for_services(WAIT_S)
    pieces = {}
    for period_s in (60.0, 0.0):
        finished(parameters.set_parameters([Parameter('stream_period_s', value=period_s)]))
        seen: list[str] = []
        answer = server.client.ask(
            STORY, within=WAIT_S, max_new_tokens=12, stream=True,
            on_feedback=lambda each: seen.append(each.text),
        )
        assert answer.response.startswith(''.join(seen))
        pieces[period_s] = sum(text != '' for text in seen)
    # The first token, what there was when the risk changed if it did, and the rest at the end.
    assert 1 <= pieces[60.0] <= 4 < pieces[0.0]
    finished(parameters.set_parameters([Parameter('stream_period_s', value=0.02)]))


# --- the command line


def test_ask_prints_the_answer(server: Server) -> None:
    asked = timebill('ask', PARIS, '--within', '60', '--namespace', 'robot')
    assert (asked.returncode, asked.stdout.decode()) == (0, 'The capital of France is Paris.\n')
    assert b'COMPLETED' in asked.stderr


def test_ask_streams(server: Server) -> None:
    asked = timebill(
        'ask', '-', '--within', '60', '--namespace', 'robot', '--stream', text_in=PARIS.encode()
    )
    assert (asked.returncode, asked.stdout.decode()) == (0, 'The capital of France is Paris.\n')


def test_ask_prints_json(server: Server) -> None:
    asked = timebill('ask', PARIS, '--within', '60', '--namespace', 'robot', '--json', '--stream')
    fields = json.loads(asked.stdout)
    assert set(QueryTimingMsg.get_fields_and_field_types()) <= set(fields)
    assert (fields['outcome'], fields['error_code'], fields['error_msg']) == ('COMPLETED', 0, '')
    assert fields['response'] == 'The capital of France is Paris.'
    assert fields['n_prompt'] == 37 and fields['evict'] is None
    assert fields['elapsed_s'] < fields['within_s'] == 60.0


@pytest.mark.parametrize(
    ('arguments', 'status', 'outcome'),
    [
        ((PARIS, '--within', '0.01'), 3, 'DEADLINE_MISSED'),
        ((STORY, '--within', '1', '--admission', 'guaranteed'), 4, 'INFEASIBLE'),
        (('', '--within', '1'), 6, 'INVALID'),
        ((PARIS, '--within', '1', '--temperature', '99'), 6, 'INVALID'),
        ((PARIS, '--within', '-1'), 6, 'INVALID'),
        ((PARIS, '--within', '1', '--max-new-tokens', '-5'), 6, 'INVALID'),
    ],
)
def test_ask_has_an_exit_status_per_outcome(
    server: Server, arguments: tuple[str, ...], status: int, outcome: str
) -> None:
    asked = timebill('ask', *arguments, '--namespace', 'robot', '--json')
    fields = json.loads(asked.stdout)
    assert (asked.returncode, fields['outcome']) == (status, outcome)
    assert fields['error_msg']


def test_ask_whose_reader_leaves_ends_the_query(server: Server) -> None:
    command = python_command(
        'timebill_ros.cli', ['ask', STORY, '--within', '60', '--namespace', 'robot', '--stream']
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as asked:
        assert asked.stdout is not None and asked.stderr is not None
        asked.stdout.read(1)
        asked.stdout.close()
        assert asked.wait(WAIT_S) == 141
        assert asked.stderr.read() == b''


def test_ask_without_a_server(ros_domain: int) -> None:
    asked = timebill(
        'ask', PARIS, '--within', '9', '--namespace', 'nobody', '--server-wait', '0.2', '--json'
    )
    fields = json.loads(asked.stdout)
    assert (asked.returncode, fields['outcome'], fields['error_name']) == (
        8,
        'FAILED',
        'ENGINE_NOT_READY',
    )
    assert set(QueryTimingMsg.get_fields_and_field_types()) <= set(fields)


@pytest.mark.parametrize(
    'arguments',
    [
        ('ask', b'caf\xe9', '--within', '1'),
        ('ask', '-', '--within', '1'),
        ('ask', 'x', '--within', 'soon'),
        ('ask', 'x'),
        ('ask', 'x', '--within', '1', '--namespace', 'a b'),
        ('frobnicate',),
        (),
    ],
)
def test_a_command_line_that_cannot_be_right(
    ros_domain: int, arguments: tuple[str | bytes, ...]
) -> None:
    run = timebill(*arguments, text_in=b'caf\xe9')
    assert run.returncode == 2
    assert run.stderr and b'Traceback' not in run.stderr
    if b'caf\xe9' in arguments or '-' in arguments:
        assert b'UTF-8' in run.stderr


@pytest.mark.parametrize(
    ('setting', 'named'),
    [
        ('alpha_max:=2.0', b'alpha_max'),
        ('default_overrun:=never', b'default_overrun'),
        ('max_queue:=many', b'max_queue'),
        ('engine_python:=/no/such/python', b'/no/such/python'),
        ('max_queue=4', b'max_queue=4'),
    ],
)
def test_a_server_with_a_wrong_parameter_does_not_start(
    ros_domain: int, setting: str, named: bytes
) -> None:
    served = timebill('serve', '--no-calibration', '--param', setting)
    assert served.returncode == 2
    assert named in served.stderr and b'Traceback' not in served.stderr


def test_a_missing_model_is_told_and_does_not_end_the_node(ros_domain: int) -> None:
    given = ['--namespace', 'empty', '--no-calibration', '--model', '/no/such/model']
    with ServerProcess(given) as process:
        watcher = Watcher('empty')
        assert process.wait_for_line('/no/such/model', WAIT_S)
        until(lambda: any(each.engine_state == each.FAILED for each in watcher.statuses))
        assert '/no/such/model' in watcher.statuses[-1].engine_message
        assert not watcher.raw.server_is_ready()
        assert process.is_running
        watcher.close()
