# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What a client sends and gets: a goal from plain values, an answer from the result."""

from collections.abc import Mapping
from dataclasses import dataclass, field
import math
from typing import Any

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
    def ok(self) -> bool:
        """There is an answer to act on, whole or truncated, in time."""
        return self.outcome in (Outcome.COMPLETED, Outcome.TRUNCATED)


def goal_of(prompt: str, fields: Mapping[str, Any]) -> QueryAction.Goal:
    """
    Return the goal for a prompt and further fields of ``Query.Goal``; ``messages`` may be Turns.

    Raises TypeError for a field that does not exist, ValueError for a value that its type cannot
    hold.
    """
    goal = QueryAction.Goal(prompt=prompt)
    known = goal.get_fields_and_field_types()
    for name, value in fields.items():
        if name not in known or name in ('prompt', 'time_allowance'):
            raise TypeError(f'a query has no field {name!r}')
        try:
            setattr(goal, name, _goal_value(name, known[name], value))
        except AssertionError as error:
            raise ValueError(f'{name} = {value!r}: {error}') from error
    return goal


def _goal_value(name: str, kind: str, value: Any) -> Any:
    if name == 'messages':
        return [
            ChatMessage(role=each.role, content=each.content) if isinstance(each, Turn) else each
            for each in value
        ]
    if kind == 'double':
        return float(value)
    if 'int' in kind and not isinstance(value, bool) and isinstance(value, int):
        return int(value)  # of an enumeration
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
