# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Every limit of a goal's fields, and every default that the server fills in."""

from dataclasses import replace
from math import inf, nan
from types import SimpleNamespace
from typing import Any

import pytest

from timebill_ros.nodes.validation import InvalidGoal, resolve, ServerDefaults
from timebill_ros.query import Admission, ErrorCode, Overrun, Query, Turn

S = 1_000_000_000
ARRIVED_SYSTEM_NS = 1000 * S
DEFAULTS = ServerDefaults(
    n_max=512,
    max_context=8192,
    max_prompt_bytes=1000,
    admission=Admission.BEST_EFFORT,
    overrun=Overrun.KILL,
    alpha_max=0.9,
    delivery_margin_s=0.02,
    max_overrun_s=1.5,
    max_clock_skew_s=0.1,
    tiers=('bf16', 'int8'),
    sampling={'temperature': 0.7, 'top_p': 0.8, 'top_k': 20, 'repetition_penalty': 1.2},
)


def span(sec: int, nanosec: int = 0) -> SimpleNamespace:
    return SimpleNamespace(sec=sec, nanosec=nanosec)


def turn(role: str, content: str) -> SimpleNamespace:
    return SimpleNamespace(role=role, content=content)


def goal(**changed: Any) -> SimpleNamespace:
    """Return a valid goal with the IDL's defaults, but for these fields."""
    fields = {
        'prompt': 'hello',
        'messages': [],
        'system_prompt': '',
        'time_allowance': span(2),
        'sent_at': span(0),
        'max_new_tokens': 0,
        'admission': 0,
        'overrun': 0,
        'alpha_max': -1.0,
        'min_tier': '',
        'stop': [],
        'stream': False,
        'temperature': -1.0,
        'top_p': 0.0,
        'top_k': -1,
        'repetition_penalty': 0.0,
        'seed': -1,
        'client_id': '',
    }
    assert set(changed) <= set(fields)
    return SimpleNamespace(**{**fields, **changed})


def resolved(defaults: ServerDefaults = DEFAULTS, **changed: Any) -> Query:
    return resolve(goal(**changed), 'id', 5 * S, ARRIVED_SYSTEM_NS, defaults)


BAD = [
    ({'prompt': ''}, ErrorCode.INVALID_PROMPT, 'prompt'),
    ({'prompt': ' \n\t'}, ErrorCode.INVALID_PROMPT, 'prompt'),
    ({'messages': [turn('user', 'hi')]}, ErrorCode.INVALID_PROMPT, 'prompt'),
    ({'prompt': 'x' * 1001}, ErrorCode.INVALID_PROMPT, 'max_prompt_bytes = 1000'),
    ({'prompt': 'ü' * 501}, ErrorCode.INVALID_PROMPT, '1002 bytes'),
    (
        {'prompt': '', 'messages': [turn('robot', 'hi')]},
        ErrorCode.INVALID_PROMPT,
        'messages[0].role',
    ),
    (
        {'prompt': '', 'messages': [turn('user', '')]},
        ErrorCode.INVALID_PROMPT,
        'messages[0].content',
    ),
    (
        {'prompt': '', 'messages': [turn('user', 'a'), turn('assistant', 'b')]},
        ErrorCode.INVALID_PROMPT,
        'messages[1]',
    ),
    (
        {'prompt': '', 'messages': [turn('user', 'a'), turn('system', 'b'), turn('user', 'c')]},
        ErrorCode.INVALID_PROMPT,
        'messages[1].role',
    ),
    (
        {'prompt': '', 'system_prompt': 's', 'messages': [turn('system', 'b'), turn('user', 'c')]},
        ErrorCode.INVALID_PROMPT,
        'system_prompt',
    ),
    ({'time_allowance': span(0)}, ErrorCode.INVALID_TIME_ALLOWANCE, 'time_allowance'),
    ({'time_allowance': span(-1)}, ErrorCode.INVALID_TIME_ALLOWANCE, 'time_allowance'),
    ({'time_allowance': span(-1, 999_999_999)}, ErrorCode.INVALID_TIME_ALLOWANCE, 'time_allowance'),
    ({'time_allowance': span(1, S)}, ErrorCode.INVALID_TIME_ALLOWANCE, 'time_allowance.nanosec'),
    ({'sent_at': span(1)}, ErrorCode.INVALID_SENT_AT, '999.000 s behind'),
    ({'sent_at': span(997, 800_000_000)}, ErrorCode.INVALID_SENT_AT, 'max_clock_skew_s = 0.1 s'),
    ({'sent_at': span(1000, 100_000_001)}, ErrorCode.INVALID_SENT_AT, 'ahead of'),
    ({'sent_at': span(999, S)}, ErrorCode.INVALID_SENT_AT, 'sent_at.nanosec'),
    ({'max_new_tokens': 8193}, ErrorCode.INVALID_MAX_NEW_TOKENS, '8192'),
    ({'admission': 3}, ErrorCode.INVALID_ADMISSION, 'admission = 3'),
    ({'overrun': 4}, ErrorCode.INVALID_OVERRUN, 'overrun = 4'),
    *(
        ({'alpha_max': value}, ErrorCode.INVALID_ALPHA_MAX, 'alpha_max')
        for value in (-0.5, 0.96, nan, inf, -inf)
    ),
    ({'min_tier': 'int4'}, ErrorCode.INVALID_MIN_TIER, 'bf16, int8'),
    ({'client_id': 'ü' * 129}, ErrorCode.INVALID_CLIENT_ID, '258 bytes'),
    ({'stop': [''] * 1}, ErrorCode.INVALID_STOP, 'stop[0]'),
    ({'stop': ['a', 'x' * 257]}, ErrorCode.INVALID_STOP, 'stop[1]'),
    ({'stop': ['a'] * 17}, ErrorCode.INVALID_STOP, '16'),
    *(
        ({'temperature': value}, ErrorCode.INVALID_SAMPLING, 'temperature')
        for value in (-0.1, 10.5, nan, inf)
    ),
    *(({'top_p': value}, ErrorCode.INVALID_SAMPLING, 'top_p') for value in (-0.1, 1.01, nan, -inf)),
    *(
        ({'repetition_penalty': value}, ErrorCode.INVALID_SAMPLING, 'repetition_penalty')
        for value in (-1.0, 10.1, nan, inf)
    ),
    ({'top_k': -2}, ErrorCode.INVALID_SAMPLING, 'top_k'),
    ({'seed': -2}, ErrorCode.INVALID_SAMPLING, 'seed'),
]


@pytest.mark.parametrize(('changed', 'code', 'named'), BAD)
def test_a_field_out_of_its_limits_is_named(
    changed: dict[str, Any], code: ErrorCode, named: str
) -> None:
    with pytest.raises(InvalidGoal) as error:
        resolved(**changed)
    assert error.value.error_code == code
    assert named in str(error.value)


def test_defaults_are_the_servers_and_the_models() -> None:
    query = resolved()
    assert query.messages == [Turn('user', 'hello')]
    assert (query.max_new_tokens, query.cap_is_clients) == (512, False)
    assert (query.admission, query.overrun, query.alpha_max) == (
        Admission.BEST_EFFORT,
        Overrun.KILL,
        0.9,
    )
    sampling = query.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.8, 20)
    assert (sampling.repetition_penalty, sampling.seed) == (1.2, None)
    assert (query.arrival_ns, query.deadline_ns) == (5 * S, 7 * S)
    assert query.plan_deadline_ns == 7 * S - 20_000_000


def test_zero_is_a_value_where_the_default_is_another() -> None:
    query = resolved(temperature=0.0, alpha_max=0.0, top_k=0, seed=0)
    assert (query.sampling.temperature, query.alpha_max) == (0.0, 0.0)
    assert (query.sampling.top_k, query.sampling.seed) == (0, 0)


@pytest.mark.parametrize(
    ('asked', 'cap', 'is_clients'),
    [(0, 512, False), (7, 7, True), (512, 512, True), (513, 512, False), (8192, 512, False)],
)
def test_the_cap_in_force_and_whose_it_is(asked: int, cap: int, is_clients: bool) -> None:
    query = resolved(max_new_tokens=asked)
    assert (query.max_new_tokens, query.cap_is_clients) == (cap, is_clients)


def test_limits_themselves_are_allowed() -> None:
    query = resolved(
        prompt='x' * 1000,
        time_allowance=span(0, 1),
        alpha_max=0.95,
        temperature=10.0,
        top_p=1.0,
        repetition_penalty=10.0,
        stop=['x' * 256] * 16,
        admission=Admission.GUARANTEED,
        overrun=Overrun.KILL,
    )
    assert query.admission == Admission.GUARANTEED
    assert query.deadline_ns == 5 * S + 1


def test_a_system_prompt_becomes_the_first_turn() -> None:
    assert resolved(system_prompt='be brief').messages == [
        Turn('system', 'be brief'),
        Turn('user', 'hello'),
    ]
    turns = [turn('system', 's'), turn('user', 'a'), turn('assistant', 'b'), turn('user', 'c')]
    assert [each.role for each in resolved(prompt='', messages=turns).messages] == [
        'system',
        'user',
        'assistant',
        'user',
    ]


def test_a_long_value_is_shown_short() -> None:
    with pytest.raises(InvalidGoal) as error:
        resolved(defaults=replace(DEFAULTS), min_tier='x' * 10_000)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ('sent_at', 'waited_s'),
    [
        (span(999, 500_000_000), 0.5),
        (span(1000), 0.0),
        (span(1000, 100_000_000), 0.0),  # ahead, by no more than the skew
        (span(997, 900_000_000), 2.1),  # the budget is over: a miss, and no other clock
        (span(0), 0.0),
    ],
)
def test_the_budget_runs_from_the_moment_of_sending(sent_at: Any, waited_s: float) -> None:
    query = resolved(sent_at=sent_at)
    assert query.arrival_ns == 5 * S
    assert query.waited_ns == round(waited_s * S)
    assert query.deadline_ns == 7 * S - query.waited_ns
    assert query.plan_deadline_ns == query.deadline_ns - 20_000_000
    assert query.time_allowance_ns == 2 * S


def test_only_under_skip_next_work_goes_on_after_the_deadline() -> None:
    late = resolved(overrun=Overrun.SKIP_NEXT, min_tier='int8', client_id='arm')
    assert (late.overrun_ns, late.stop_ns) == (1_500_000_000, late.plan_deadline_ns + 1_500_000_000)
    assert (late.min_tier, late.client_id) == ('int8', 'arm')
    for overrun in (Overrun.KILL, Overrun.SOFT_LANDING):
        assert resolved(overrun=overrun).stop_ns == resolved().plan_deadline_ns
