# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Our types and the interfaces say the same, and nothing is lost between them."""

from dataclasses import fields
from enum import IntEnum
import json
from math import inf, nan
from typing import Any

from builtin_interfaces.msg import Duration, Time
import pytest
from unique_identifier_msgs.msg import UUID

from timebill_ros.action import Query as QueryAction
from timebill_ros.executor.supervisor import EngineState
from timebill_ros.msg import ExecutorStatus
from timebill_ros.msg import QueryTiming as QueryTimingMsg
from timebill_ros.nodes import conversions
from timebill_ros.nodes.answer import answer_of, goal_of, within_objection
from timebill_ros.nodes.validation import resolve, ServerDefaults
from timebill_ros.query import (
    Admission,
    DecodeStretch,
    Ending,
    ErrorCode,
    FinishReason,
    Outcome,
    Overrun,
    QueryTiming,
    Stage,
    Turn,
)

# Of the query, not of its timing.
IDENTITY = {
    'stamp',
    'arrived',
    'goal_id',
    'model',
    'device',
    'outcome',
    'finish_reason',
    'error_code',
}


def constants_of(message: Any, prefix: str = '') -> dict[str, int]:
    """Return the constants of a message with this prefix, which is cut off."""
    names = [name for name in dir(type(message)) if name.isupper() and name.startswith(prefix)]
    names = [name for name in names if name != 'SLOT_TYPES']  # of rclpy
    return {name[len(prefix) :]: getattr(message, name) for name in names}


@pytest.mark.parametrize(
    ('enum', 'message', 'prefix'),
    [
        (Outcome, QueryAction.Result, 'OUTCOME_'),
        (FinishReason, QueryAction.Result, 'FINISH_'),
        (Admission, QueryAction.Goal, 'ADMISSION_'),
        (Overrun, QueryAction.Goal, 'OVERRUN_'),
        (Stage, QueryAction.Feedback, 'STAGE_'),
        (EngineState, ExecutorStatus, ''),
    ],
)
def test_enumerations_have_the_interfaces_numbers(
    enum: type[IntEnum], message: type, prefix: str
) -> None:
    assert {each.name: each.value for each in enum} == constants_of(message(), prefix)


def test_error_codes_have_the_interfaces_numbers() -> None:
    codes = {
        name: value
        for name, value in constants_of(QueryAction.Result()).items()
        if not name.startswith(('OUTCOME_', 'FINISH_'))
    }
    assert {each.name: each.value for each in ErrorCode} == codes


def test_the_timing_record_has_the_messages_fields() -> None:
    ours = {each.name for each in fields(QueryTiming)} - {'coefficients_stamp_ns'}
    theirs = set(QueryTimingMsg.get_fields_and_field_types()) - IDENTITY
    assert ours | {'coefficients_stamp'} == theirs


def test_a_timing_record_survives_the_message() -> None:
    timing = QueryTiming(
        n_prompt=5,
        tier='fp32',
        alpha=0.25,
        feasible=True,
        coefficients_stamp_ns=3_000_000_004,
        law_prefill=[1.0, 2.0],
        replans=['1.0 alpha 0 -> 0.5 slack'],
        stretches=[DecodeStretch('fp32', 2, 40.5, 3, 0.25)],
        total=nan,
        slack=-0.5,
    )
    message = conversions.timing_msg(
        timing,
        Ending(Outcome.COMPLETED, FinishReason.END_TOKEN),
        conversions.Identity(UUID(uuid=list(range(16))), 1, 2_000_000_003, 'm', 'd'),
    )
    assert repr(conversions.timing_from_msg(message)) == repr(timing)
    assert (message.outcome, message.finish_reason) == (1, 1)
    assert (message.stamp.sec, message.stamp.nanosec) == (2, 3)
    assert (message.coefficients_stamp.sec, message.coefficients_stamp.nanosec) == (3, 4)
    shown = conversions.json_value(message)
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    assert (shown['total'], shown['slack'], shown['goal_id']) == (
        None,
        -0.5,
        bytes(range(16)).hex(),
    )


@pytest.mark.parametrize(
    ('nanoseconds', 'sec', 'nanosec'),
    [(0, 0, 0), (1_500_000_000, 1, 500_000_000), (-1, -1, 999_999_999), (10**30, 2**31 - 1, 0)],
)
def test_durations(nanoseconds: int, sec: int, nanosec: int) -> None:
    duration = conversions.duration_msg(nanoseconds)
    assert duration.sec == sec
    if abs(nanoseconds) < 2**62:
        assert duration.nanosec == nanosec
        assert conversions.duration_s(duration) == pytest.approx(nanoseconds / 1e9)


def test_text_that_is_not_unicode_becomes_text_that_is() -> None:
    result = conversions.result_msg(Ending(Outcome.COMPLETED), 'half \ud83d', 0, QueryTimingMsg())
    assert result.response == 'half ?'


def test_a_goal_with_the_interfaces_defaults_is_valid() -> None:
    defaults = ServerDefaults(
        512, 8192, 1000, Admission.BEST_EFFORT, Overrun.KILL, 0.9, 0.01, 1.0, 0.1, ('fp32',), {}
    )
    goal = QueryAction.Goal(prompt='hello', time_allowance=Duration(sec=1))
    query = resolve(goal, 'id', 0, 0, defaults)
    assert (query.alpha_max, query.max_new_tokens, query.sampling.temperature) == (0.9, 512, 0.0)


def test_a_goal_from_plain_values() -> None:
    goal = goal_of('', {'messages': [Turn('user', 'hi')], 'alpha_max': 0, 'overrun': Overrun.KILL})
    assert (goal.messages[0].role, goal.alpha_max, goal.overrun) == ('user', 0.0, 1)
    with pytest.raises(TypeError, match='no field'):
        goal_of('x', {'temprature': 1.0})
    with pytest.raises(TypeError, match='no field'):
        goal_of('x', {'time_allowance': Duration(sec=1)})
    assert goal_of('x', {'sent_at': Time(sec=5)}).sent_at.sec == 5


@pytest.mark.parametrize(
    ('name', 'value'),
    [
        ('max_new_tokens', -1),
        ('max_new_tokens', 2**32),
        ('max_new_tokens', 1.5),
        ('admission', 256),
        ('seed', 2**63),
        ('stop', 'abc'),
        ('stop', [1]),
        ('system_prompt', 5),
        ('min_tier', '\ud83d'),
        ('temperature', 'hot'),
        ('messages', ['hi']),
        ('stream', 'yes'),
        ('sent_at', 5.0),
    ],
)
def test_a_value_that_its_field_cannot_hold_is_told(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f'{name} = '):
        goal_of('x', {name: value})


def test_a_prompt_that_is_no_text_is_told() -> None:
    with pytest.raises(ValueError, match='prompt = '):
        goal_of('\ud83d', {})
    with pytest.raises(ValueError, match='prompt = .*NUL'):
        goal_of('left or\0right?', {})
    with pytest.raises(ValueError) as raised:
        goal_of('x' * 10**6 + '\0', {})
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize('within', [0.0, -1.0, nan, inf, 1e12])
def test_a_budget_that_is_none(within: float) -> None:
    assert 'within' in within_objection(within)


@pytest.mark.parametrize('outcome', [each for each in Outcome if each != Outcome.DEADLINE_MISSED])
def test_what_arrives_late_is_no_answer(outcome: Outcome) -> None:
    result = conversions.result_msg(
        Ending(outcome, error_msg='why'), 'text', 0, QueryTimingMsg(outcome=int(outcome))
    )
    in_time = answer_of(result, 2_000, 2_000)
    assert (in_time.outcome, in_time.error_msg) == (outcome, 'why')
    late = answer_of(result, 2_001, 2_000)
    assert (late.outcome, late.error_code) == (Outcome.DEADLINE_MISSED, ErrorCode.DELIVERED_LATE)
    assert not late.ok and late.response == 'text'
    assert outcome.name in late.error_msg and 'why' in late.error_msg


def test_a_miss_that_the_server_tells_stays_what_it_is() -> None:
    result = conversions.result_msg(
        Ending(Outcome.DEADLINE_MISSED, error_code=ErrorCode.DEADLINE_MISSED, error_msg='said'),
        '',
        0,
        QueryTimingMsg(),
    )
    late = answer_of(result, 3_000, 2_000)
    assert (late.error_code, late.error_msg) == (ErrorCode.DEADLINE_MISSED, 'said')
