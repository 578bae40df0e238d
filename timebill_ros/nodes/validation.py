# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Is a goal within its limits, and what does it ask for once every default is resolved.

Pure: a goal is any object with the fields of ``Query.Goal``, so nothing here imports ROS.
"""

from dataclasses import dataclass
import json
import math
from typing import Any, NoReturn, TypeVar

from timebill_ros.query import (
    Admission, ALPHA_MAX, ErrorCode, NS_PER_S, Overrun, Query, Sampling, Turn)

MAX_STOPS = 16
MAX_STOP_BYTES = 256
MAX_CLIENT_ID_BYTES = 256
MAX_TEMPERATURE = 10.0
MAX_REPETITION_PENALTY = 10.0
ROLES = ('system', 'user', 'assistant')
SHOWN_CHARACTERS = 40

_ChoiceT = TypeVar('_ChoiceT', Admission, Overrun)


class InvalidGoal(ValueError):
    """A field of a goal is out of its limits; the message names field, value and limit."""

    def __init__(self, error_code: ErrorCode, message: str) -> None:
        """Keep the code beside the message."""
        super().__init__(message)
        self.error_code = error_code


@dataclass(frozen=True)
class ServerDefaults:
    """What stands in for the fields that a goal leaves to the server, and its own limits."""

    n_max: int
    max_context: int  # tokens
    max_prompt_bytes: int
    admission: Admission
    overrun: Overrun
    alpha_max: float
    delivery_margin_s: float
    max_overrun_s: float
    max_clock_skew_s: float
    tiers: tuple[str, ...]  # of the engine, best quality first
    sampling: dict[str, Any]  # of the model: temperature, top_p, top_k, repetition_penalty


def resolve(
    goal: Any, query_id: str, arrival_ns: int, arrived_system_ns: int, defaults: ServerDefaults
) -> Query:
    """
    Check every field of a goal and return the query it asks for.

    ``arrival_ns`` is the steady clock's nanoseconds, ``arrived_system_ns`` the system clock's at
    that moment. Raises InvalidGoal for the first field out of its limits.
    """
    budget_ns = time_allowance_ns(goal.time_allowance)
    messages = _messages(goal, defaults.max_prompt_bytes)
    waited_ns = _waited_ns(goal.sent_at, arrived_system_ns, budget_ns, defaults.max_clock_skew_s)
    deadline_ns = arrival_ns - waited_ns + budget_ns
    overrun = _choice(ErrorCode.INVALID_OVERRUN, 'overrun', goal.overrun, defaults.overrun)
    return Query(
        query_id=query_id,
        messages=messages,
        arrival_ns=arrival_ns,
        deadline_ns=deadline_ns,
        plan_deadline_ns=deadline_ns - round(defaults.delivery_margin_s * NS_PER_S),
        max_new_tokens=_max_new_tokens(goal.max_new_tokens, defaults),
        cap_is_clients=0 < goal.max_new_tokens <= defaults.n_max,
        admission=_choice(
            ErrorCode.INVALID_ADMISSION, 'admission', goal.admission, defaults.admission
        ),
        overrun=overrun,
        alpha_max=_alpha_max(goal.alpha_max, defaults),
        min_tier=_min_tier(goal.min_tier, defaults.tiers),
        stop=_stops(goal.stop),
        sampling=_sampling(goal, defaults.sampling),
        overrun_ns=(
            round(defaults.max_overrun_s * NS_PER_S) if overrun == Overrun.SKIP_NEXT else 0
        ),
        waited_ns=waited_ns,
        client_id=_client_id(goal.client_id),
    )


def time_allowance_ns(duration: Any) -> int:
    """Return the budget in nanoseconds; raises InvalidGoal unless it is well-formed and > 0."""
    sec, nanosec = duration.sec, duration.nanosec
    code = ErrorCode.INVALID_TIME_ALLOWANCE
    if nanosec >= NS_PER_S:
        _fail(code, 'time_allowance.nanosec', nanosec, f'is not below {NS_PER_S}')
    if sec < 0 or sec == nanosec == 0:
        _fail(code, 'time_allowance', f'{sec + nanosec / NS_PER_S:g} s', 'is not above 0 s')
    return sec * NS_PER_S + nanosec


def _fail(code: ErrorCode, field: str, value: Any, limit: str) -> NoReturn:
    if isinstance(value, str) and len(value) > SHOWN_CHARACTERS:
        value = value[:SHOWN_CHARACTERS] + '…'
    shown = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else value
    raise InvalidGoal(code, f'{field} = {shown} {limit}')


def _messages(goal: Any, max_bytes: int) -> list[Turn]:
    code = ErrorCode.INVALID_PROMPT
    turns = [Turn(each.role, each.content) for each in goal.messages]
    if goal.prompt and turns:
        _fail(
            code,
            'prompt',
            goal.prompt,
            f'and {len(turns)} messages are both given; give exactly one of them',
        )
    if goal.prompt:
        turns = [Turn('user', goal.prompt)]
    if not turns:
        _fail(code, 'prompt', goal.prompt, 'is empty, and so is messages; give exactly one of them')
    for index, turn in enumerate(turns):
        if turn.role not in ROLES:
            _fail(code, f'messages[{index}].role', turn.role, 'is not one of ' + ', '.join(ROLES))
        if turn.role == 'system' and index > 0:
            _fail(code, f'messages[{index}].role', turn.role, 'is allowed in messages[0] only')
        if not turn.content.strip():
            _fail(
                code,
                f'messages[{index}].content' if goal.messages else 'prompt',
                turn.content,
                'is blank',
            )
    if turns[-1].role != 'user':
        _fail(
            code,
            f'messages[{len(turns) - 1}].role',
            turns[-1].role,
            'is not user, as the last turn has to be',
        )
    if goal.system_prompt:
        if turns[0].role == 'system':
            _fail(
                code,
                'system_prompt',
                goal.system_prompt,
                'and a system turn in messages[0] are both given; give at most one of them',
            )
        turns.insert(0, Turn('system', goal.system_prompt))
    size = sum(len(turn.content.encode('utf-8', 'surrogatepass')) for turn in turns)
    if size > max_bytes:
        _fail(
            code,
            'prompt' if goal.prompt else 'messages',
            f'{size} bytes',
            f"exceeds the server's max_prompt_bytes = {max_bytes}",
        )
    return turns


def _waited_ns(sent_at: Any, arrived_ns: int, budget_ns: int, max_skew_s: float) -> int:
    """
    Return how much of the budget was gone when the goal arrived.

    A moment ahead of our clock by no more than ``max_skew_s`` counts as now; one so long ago that
    the budget was over before, by more than that, can only come from another clock.
    """
    if sent_at.sec == 0 and sent_at.nanosec == 0:
        return 0
    code = ErrorCode.INVALID_SENT_AT
    if sent_at.nanosec >= NS_PER_S:
        _fail(code, 'sent_at.nanosec', sent_at.nanosec, f'is not below {NS_PER_S}')
    ago_ns = arrived_ns - (sent_at.sec * NS_PER_S + sent_at.nanosec)
    shown = f'{sent_at.sec}.{sent_at.nanosec:09d}'
    skew_ns = round(max_skew_s * NS_PER_S)
    if ago_ns < -skew_ns:
        _fail(
            code,
            'sent_at',
            shown,
            f"is {-ago_ns / NS_PER_S:.3f} s ahead of the server's clock, more than "
            f'max_clock_skew_s = {max_skew_s:g} s',
        )
    if ago_ns > budget_ns + skew_ns:
        _fail(
            code,
            'sent_at',
            shown,
            f"is {ago_ns / NS_PER_S:.3f} s behind the server's clock, more than "
            f'time_allowance and max_clock_skew_s = {max_skew_s:g} s together',
        )
    return max(0, ago_ns)


def _min_tier(name: str, tiers: tuple[str, ...]) -> str:
    if name and name not in tiers:
        _fail(
            ErrorCode.INVALID_MIN_TIER,
            'min_tier',
            name,
            f'is not one of the tiers served: {", ".join(tiers)}',
        )
    return name


def _client_id(name: str) -> str:
    size = len(name.encode('utf-8', 'surrogatepass'))
    if size > MAX_CLIENT_ID_BYTES:
        _fail(
            ErrorCode.INVALID_CLIENT_ID,
            'client_id',
            f'{size} bytes',
            f'exceeds {MAX_CLIENT_ID_BYTES}',
        )
    return name


def _max_new_tokens(asked: int, defaults: ServerDefaults) -> int:
    if asked > defaults.max_context:
        _fail(
            ErrorCode.INVALID_MAX_NEW_TOKENS,
            'max_new_tokens',
            asked,
            f'exceeds the context of {defaults.max_context} tokens',
        )
    return min(asked, defaults.n_max) if asked else defaults.n_max


def _choice(code: ErrorCode, field: str, value: int, default: _ChoiceT) -> _ChoiceT:
    kind = type(default)
    if value not in set(kind):
        _fail(
            code,
            field,
            value,
            f'is not one of {", ".join(f"{each.name} = {each.value}" for each in kind)}',
        )
    return default if value == kind.SERVER_DEFAULT else kind(value)


def _alpha_max(value: float, defaults: ServerDefaults) -> float:
    if value == -1.0:
        return defaults.alpha_max
    if not 0.0 <= value <= ALPHA_MAX:
        _fail(
            ErrorCode.INVALID_ALPHA_MAX,
            'alpha_max',
            value,
            f"is not within 0..{ALPHA_MAX} (or -1, the server's)",
        )
    return value


def _stops(stops: Any) -> list[str]:
    code = ErrorCode.INVALID_STOP
    if len(stops) > MAX_STOPS:
        _fail(code, 'stop', f'{len(stops)} strings', f'exceeds {MAX_STOPS}')
    for index, text in enumerate(stops):
        size = len(text.encode('utf-8', 'surrogatepass'))
        if not 1 <= size <= MAX_STOP_BYTES:
            _fail(
                code, f'stop[{index}]', f'{size} bytes', f'is not within 1..{MAX_STOP_BYTES} bytes'
            )
    return list(stops)


def _sampling(goal: Any, model: dict[str, Any]) -> Sampling:
    temperature = _number(
        'temperature',
        goal.temperature,
        -1.0,
        model.get('temperature', 0.0),
        0.0 <= goal.temperature <= MAX_TEMPERATURE,
        f"0..{MAX_TEMPERATURE:g} (or -1, the server's)",
    )
    top_p = _number(
        'top_p',
        goal.top_p,
        0.0,
        model.get('top_p', 1.0),
        0.0 < goal.top_p <= 1.0,
        "(0, 1] (or 0, the server's)",
    )
    penalty = _number(
        'repetition_penalty',
        goal.repetition_penalty,
        0.0,
        model.get('repetition_penalty', 1.0),
        0.0 < goal.repetition_penalty <= MAX_REPETITION_PENALTY,
        f"(0, {MAX_REPETITION_PENALTY:g}] (or 0, the server's)",
    )
    if goal.top_k < -1:
        _fail(
            ErrorCode.INVALID_SAMPLING,
            'top_k',
            goal.top_k,
            "is not 0 or above (or -1, the server's)",
        )
    if goal.seed < -1:
        _fail(
            ErrorCode.INVALID_SAMPLING, 'seed', goal.seed, 'is not 0 or above (or -1: one is drawn)'
        )
    return Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=int(model.get('top_k', 0)) if goal.top_k == -1 else goal.top_k,
        repetition_penalty=penalty,
        seed=_seed(goal.seed),
    )


def _number(
    field: str, value: float, unset: float, default: float, valid: bool, limit: str
) -> float:
    """Return the value, or the default where it means "the server's"; NaN is never valid."""
    if value == unset:
        return float(default)
    if not valid or not math.isfinite(value):
        _fail(ErrorCode.INVALID_SAMPLING, field, value, f'is not within {limit}')
    return value


def _seed(value: int) -> int | None:
    return None if value == -1 else value
