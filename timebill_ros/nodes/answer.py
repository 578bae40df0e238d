# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What a client sends and gets: a goal from plain values, an answer from the result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
import math
import reprlib
from typing import Any

from builtin_interfaces.msg import Time

from timebill_ros.action import Query as QueryAction
from timebill_ros.msg import ChatMessage
from timebill_ros.msg import QueryTiming as QueryTimingMsg
from timebill_ros.nodes.conversions import NS_PER_S, timing_from_msg
from timebill_ros.query import ErrorCode, FinishReason, Outcome, QueryTiming, Turn

MAX_WITHIN_S = 2.0**31 - 1


@dataclass
class Answer:
    """What came of a query. ``response`` also holds what there was of a late or canceled one."""

    outcome: Outcome
    response: str = ''
    finish_reason: FinishReason = FinishReason.NONE
    error_code: ErrorCode = ErrorCode.NONE
    error_msg: str = ''
    elapsed_s: float = 0.0  # on the client's steady clock, from before sending
    within_s: float = 0.0  # the budget
    timing: QueryTiming = field(default_factory=QueryTiming)
    message: QueryTimingMsg | None = None  # the server's timing message; None: no result came

    @property
    def lateness_s(self) -> float:
        """How long after the budget it came; 0 = in time."""
        return max(0.0, self.elapsed_s - self.within_s)

    @property
    def ok(self) -> bool:
        """There is an answer to act on, whole or truncated, in time."""
        return self.outcome in (Outcome.COMPLETED, Outcome.TRUNCATED)


def goal_of(prompt: str, fields: Mapping[str, Any]) -> QueryAction.Goal:
    """
    Return the goal for a prompt and further fields of ``Query.Goal``; ``messages`` may be Turns.

    Raises TypeError for a field that does not exist, ValueError for a value that its type cannot
    hold.
    """
    goal = QueryAction.Goal()
    known = goal.get_fields_and_field_types()
    for name, value in {'prompt': prompt, **fields}.items():
        if name not in known or name == 'time_allowance':
            raise TypeError(f'a query has no field {name!r}')
        try:
            setattr(goal, name, _goal_value(name, known[name], value))
        except (TypeError, ValueError, OverflowError) as error:
            # shortened: a prompt may have a megabyte
            raise ValueError(f'{name} = {reprlib.repr(value)}: {error}') from error
    return goal


def _goal_value(name: str, kind: str, value: Any) -> Any:
    """Return the value as the field holds it; rclpy itself would fail only when it sends it."""
    if name == 'messages':
        return [_chat_message(each) for each in value]
    if kind == 'double':
        return float(value)
    if kind == 'boolean':
        return bool(_require(value, bool))
    if kind == 'string':
        return _text(value)
    if kind == 'sequence<string>':
        return [_text(each) for each in _require(value, (list, tuple))]
    if kind == 'builtin_interfaces/Time':
        return _require(value, Time)
    return _integer(kind, value)


def _integer(kind: str, value: Any) -> int:
    """Return an integer, or the number of an enumeration, within the range of its type."""
    bits = int(kind.removeprefix('u').removeprefix('int'))
    low, high = (
        (0, 2**bits - 1) if kind.startswith('u') else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )
    if not low <= _require(value, int) <= high:
        raise ValueError(f'not within {low}..{high}')
    return int(value)


def _text(value: Any) -> str:
    """Return text that can be sent; raises ValueError for half characters, and for what ends it."""
    text: str = _require(value, str)
    text.encode('utf-8')
    if '\0' in text:
        raise ValueError('a ROS string ends at its first NUL character')
    return text


def _chat_message(turn: Any) -> ChatMessage:
    _require(turn, (Turn, ChatMessage))
    return ChatMessage(role=_text(turn.role), content=_text(turn.content))


def _require(value: Any, kind: type | tuple[type, ...]) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f'it is a {type(value).__name__}')
    return value


def within_objection(within_s: float) -> str:
    """Return what is wrong with a budget in seconds; '' = nothing."""
    if not math.isfinite(within_s) or not 0.0 < within_s <= MAX_WITHIN_S:
        return f'within = {within_s} s is not within (0, {MAX_WITHIN_S:g}] s'
    return ''


def answer_of(result: QueryAction.Result, elapsed_ns: int, within_ns: int) -> Answer:
    """Return the answer in a result; after the deadline it is no answer but DELIVERED_LATE."""
    answer = Answer(
        outcome=Outcome(result.outcome),
        response=result.response,
        finish_reason=FinishReason(result.finish_reason),
        error_code=ErrorCode(result.error_code),
        error_msg=result.error_msg,
        elapsed_s=elapsed_ns / NS_PER_S,
        within_s=within_ns / NS_PER_S,
        timing=timing_from_msg(result.timing),
        message=result.timing,
    )
    if elapsed_ns > within_ns and answer.outcome != Outcome.DEADLINE_MISSED:
        said = f' ({answer.error_msg})' if answer.error_msg else ''
        answer.error_msg = (
            f'{answer.outcome.name}{said} reached the client '
            f'{answer.elapsed_s - answer.within_s:.3f} s after '
            f'within = {answer.within_s:g} s'
        )
        answer.outcome, answer.error_code = Outcome.DEADLINE_MISSED, ErrorCode.DELIVERED_LATE
    return answer


def no_answer(
    outcome: Outcome, code: ErrorCode, message: str, elapsed_ns: int, within_ns: int
) -> Answer:
    """Return the answer where no result came."""
    return Answer(
        outcome,
        error_code=code,
        error_msg=message,
        elapsed_s=elapsed_ns / NS_PER_S,
        within_s=within_ns / NS_PER_S,
    )
