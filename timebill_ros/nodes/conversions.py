# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The one place where ROS messages are built from our objects, and the other way round."""

from dataclasses import dataclass, fields
import math
import time
from typing import Any

from builtin_interfaces.msg import Duration, Time
from unique_identifier_msgs.msg import UUID

from timebill_ros.action import Query as QueryAction
from timebill_ros.msg import DecodeStretch as DecodeStretchMsg
from timebill_ros.msg import QueryTiming as QueryTimingMsg
from timebill_ros.query import DecodeStretch, Ending, NS_PER_S, QueryTiming, Stage

_INT32_MAX = 2**31 - 1
_UINT32_MAX = 2**32 - 1


@dataclass
class Identity:
    """What the timing message says about a query beside its timing."""

    goal_id: UUID
    arrived_system_ns: int
    ended_system_ns: int
    model: str
    device: str


def system_ns(steady_ns: int) -> int:
    """Return the system time, in nanoseconds, of a moment of the steady clock."""
    return time.time_ns() - (time.monotonic_ns() - steady_ns)


def duration_msg(nanoseconds: int) -> Duration:
    """Return a Duration; negative ones have a negative ``sec`` and a positive ``nanosec``."""
    sec, nanosec = divmod(nanoseconds, NS_PER_S)
    return Duration(sec=max(-_INT32_MAX, min(sec, _INT32_MAX)), nanosec=nanosec)


def duration_s(duration: Any) -> float:
    """Return a Duration in seconds."""
    return float(duration.sec) + duration.nanosec / NS_PER_S


def time_msg(nanoseconds: int) -> Time:
    """Return a Time of the system clock; 0 stays zero."""
    sec, nanosec = divmod(nanoseconds, NS_PER_S)
    return Time(sec=sec, nanosec=nanosec)


def timing_msg(timing: QueryTiming, ending: Ending, identity: Identity) -> QueryTimingMsg:
    """Return the timing message of a query that has ended."""
    message = QueryTimingMsg(
        stamp=time_msg(identity.ended_system_ns),
        arrived=time_msg(identity.arrived_system_ns),
        goal_id=identity.goal_id,
        model=identity.model,
        device=identity.device,
        outcome=int(ending.outcome),
        finish_reason=int(ending.finish_reason),
        error_code=int(ending.error_code),
        coefficients_stamp=time_msg(timing.coefficients_stamp_ns),
        stretches=[_stretch_msg(each) for each in timing.stretches],
    )
    for each in fields(timing):
        if hasattr(message, each.name) and each.name != 'stretches':
            setattr(
                message,
                each.name,
                _field_value(getattr(message, each.name), getattr(timing, each.name)),
            )
    return message


def _stretch_msg(stretch: DecodeStretch) -> DecodeStretchMsg:
    return DecodeStretchMsg(
        tier=stretch.tier,
        width=stretch.width,
        n_cached=float(stretch.n_cached),
        steps=stretch.steps,
        seconds=float(stretch.seconds),
    )


def _field_value(template: Any, value: Any) -> Any:
    """Return the value with the exact type that the message's field insists on."""
    if isinstance(template, bool):
        return bool(value)
    if isinstance(template, int):
        return max(0, min(int(value), _UINT32_MAX))
    if isinstance(template, float):
        return float(value)
    return value


def timing_from_msg(message: QueryTimingMsg) -> QueryTiming:
    """Return the timing record that a message carries."""
    timing = QueryTiming(
        coefficients_stamp_ns=time_ns(message.coefficients_stamp),
        stretches=[
            DecodeStretch(each.tier, each.width, each.n_cached, each.steps, each.seconds)
            for each in message.stretches
        ],
    )
    for each in fields(timing):
        if hasattr(message, each.name) and each.name != 'stretches':
            value = getattr(message, each.name)
            setattr(
                timing,
                each.name,
                value if isinstance(value, (bool, int, float, str)) else list(value),
            )
    return timing


def time_ns(stamp: Any) -> int:
    """Return a Time in nanoseconds."""
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


def result_msg(
    ending: Ending, response: str, elapsed_ns: int, timing: QueryTimingMsg
) -> QueryAction.Result:
    """Return the result of a query that has ended."""
    return QueryAction.Result(
        response=_encodable(response),
        outcome=int(ending.outcome),
        finish_reason=int(ending.finish_reason),
        error_code=int(ending.error_code),
        error_msg=_encodable(ending.error_msg),
        total_elapsed_time=duration_msg(elapsed_ns),
        timing=timing,
    )


def feedback_msg(
    stage: Stage,
    text: str,
    n_generated: int,
    time_left_ns: int,
    predicted_left_ns: int,
    at_risk: bool,
    is_late: bool = False,
) -> QueryAction.Feedback:
    """Return one feedback message; ``predicted_left_ns`` 0 is "not known yet"."""
    return QueryAction.Feedback(
        stage=int(stage),
        text=_encodable(text),
        n_generated=n_generated,
        time_left=duration_msg(time_left_ns),
        predicted_finish=duration_msg(predicted_left_ns),
        deadline_at_risk=at_risk,
        deadline_missed=is_late or time_left_ns <= 0,
    )


def _encodable(text: str) -> str:
    """Return text that a ROS string can carry: lone surrogates become question marks."""
    return text.encode('utf-8', 'replace').decode('utf-8')


def json_value(value: Any) -> Any:
    """Return a message, or a field of one, for ``json.dumps``; not-a-number becomes null."""
    if isinstance(value, UUID):
        return bytes(value.uuid.tolist()).hex()
    if isinstance(value, (Duration, Time)):
        return duration_s(value)
    if hasattr(value, 'get_fields_and_field_types'):
        return _json_fields(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, bool, int)):
        return value
    return [json_value(each) for each in value]


def _json_fields(message: Any) -> dict[str, Any]:
    return {
        name: json_value(getattr(message, name)) for name in message.get_fields_and_field_types()
    }
