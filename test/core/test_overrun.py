# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Kill and Skip-Next tick by tick, soft landing, and cancel storms, on a virtual clock."""

import random

import pytest

from timebill_ros.budget.planner import PlannerConfig, Planning
from timebill_ros.engine.pipeline import Message
from timebill_ros.executor.messages import Finished, Planned, Progress
from timebill_ros.experiments.virtual_server import VirtualServer
from timebill_ros.query import Admission, FinishReason, Outcome, Overrun, Query, Stage, Turn
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import CONSTANT, DECODE_STEP, Law, PREFILL

S = 1_000_000_000
PREFILL_S, STEP_S, SHARED_S = 0.2, 0.1, 0.11
CHUNK = 64


def server(n_slots: int = 1) -> VirtualServer:
    laws = (
        Law(PREFILL, CONSTANT, (PREFILL_S,)),
        Law(DECODE_STEP, CONSTANT, (STEP_S,), tier='fp32'),
        Law(DECODE_STEP, CONSTANT, (SHARED_S,), tier='fp32', width=4))
    coefficients = TimingCoefficients(1, 'device', 'model', 'float32', '1', laws)
    planning = Planning(
        TimeEstimator(coefficients, 'fp32'), PlannerConfig(policy='paper'), 'file')
    return VirtualServer(planning, n_slots, CHUNK)


def query(
        name: str, at_s: float, deadline_s: float, overrun: Overrun, cap: int = 20,
        overrun_s: float = 0.0) -> Query:
    deadline_ns = round(deadline_s * S)
    return Query(
        name, [Turn('user', '')], round(at_s * S), deadline_ns, deadline_ns, cap, True,
        Admission.BEST_EFFORT, overrun, overrun_ns=round(overrun_s * S))


def record(played: VirtualServer, *asks: tuple[Query, int]) -> list[tuple[float, str, str]]:
    """Play queries with responses of so many tokens; returns what was told when."""
    ticks: list[tuple[float, str, str]] = []

    def note(message: Message) -> None:
        if isinstance(message, Planned):
            return
        what = (message.ending.outcome.name if isinstance(message, Finished)
                else f'{message.stage.name} {message.n_generated}')
        ticks.append((round(played.clock() / S, 3), message.query_id, what))

    played.on_message = note
    for asked, length in asks:
        played.clock.at(
            asked.arrival_ns,
            lambda asked=asked, length=length: played.submit(asked, CHUNK, length))
    played.run()
    return ticks


def test_kill_tick_by_tick() -> None:
    """The late job ends at its deadline, with the step it is in; the next begins at once."""
    ticks = record(
        server(), (query('a', 0.0, 0.5, Overrun.KILL), 6), (query('b', 0.3, 1.2, Overrun.KILL), 3))
    assert ticks == [
        (0.0, 'a', 'PREFILL 0'), (0.2, 'a', 'DECODE 1'), (0.3, 'a', 'DECODE 2'),
        (0.4, 'a', 'DECODE 3'), (0.5, 'a', 'DECODE 4'), (0.5, 'a', 'DEADLINE_MISSED'),
        (0.5, 'b', 'PREFILL 0'), (0.7, 'b', 'DECODE 1'), (0.8, 'b', 'DECODE 2'),
        (0.9, 'b', 'DECODE 3'), (0.9, 'b', 'COMPLETED')]


def test_skip_next_tick_by_tick() -> None:
    """The late job runs to its end and says that it is late; what waited comes after it."""
    played = server()
    ticks = record(
        played, (query('a', 0.0, 0.5, Overrun.SKIP_NEXT, overrun_s=1.0), 6),
        (query('b', 0.3, 1.2, Overrun.SKIP_NEXT, overrun_s=1.0), 3))
    assert ticks == [
        (0.0, 'a', 'PREFILL 0'), (0.2, 'a', 'DECODE 1'), (0.3, 'a', 'DECODE 2'),
        (0.4, 'a', 'DECODE 3'), (0.5, 'a', 'LATE 4'), (0.6, 'a', 'LATE 5'), (0.7, 'a', 'LATE 6'),
        (0.7, 'a', 'DEADLINE_MISSED'),
        (0.7, 'b', 'PREFILL 0'), (0.9, 'b', 'DECODE 1'), (1.0, 'b', 'DECODE 2'),
        (1.1, 'b', 'DECODE 3'), (1.1, 'b', 'COMPLETED')]
    late = played.ended['a']
    assert late.ending.finish_reason == FinishReason.END_TOKEN and len(late.text) == 5
    assert '0.200 s too late' in late.ending.error_msg


def test_skip_next_runs_on_no_longer_than_allowed() -> None:
    ticks = record(server(), (query('a', 0.0, 0.5, Overrun.SKIP_NEXT, overrun_s=0.25), 20))
    assert ticks[-2:] == [(0.8, 'a', 'LATE 7'), (0.8, 'a', 'DEADLINE_MISSED')]


def test_skip_next_that_has_not_begun_at_its_deadline_is_missed() -> None:
    ticks = record(
        server(), (query('a', 0.0, 0.9, Overrun.KILL, cap=9), 9),
        (query('b', 0.1, 0.95, Overrun.SKIP_NEXT, overrun_s=9.0), 3))
    assert [tick for tick in ticks if tick[1] == 'b'][-1][2] in ('INFEASIBLE', 'DEADLINE_MISSED')
    assert not any(tick[2].startswith('LATE') for tick in ticks)


def test_soft_landing_ends_before_its_deadline_with_what_there_is() -> None:
    played = server()
    ticks = record(played, (query('a', 0.0, 0.65, Overrun.SOFT_LANDING), 20))
    assert ticks[-1][0] < 0.65 and ticks[-1][2] == 'TRUNCATED'
    landed = played.ended['a']
    assert landed.ending.finish_reason == FinishReason.LANDED and landed.text


def test_one_that_lands_does_so_before_anothers_long_chunk() -> None:
    played = server(n_slots=2)
    ticks = record(
        played, (query('a', 0.0, 0.6, Overrun.SOFT_LANDING), 20),
        (query('b', 0.42, 0.9, Overrun.KILL, cap=2), 2))
    assert (0.6 > next(tick[0] for tick in ticks if tick[1:] == ('a', 'TRUNCATED')))
    assert ticks[-1][1:] == ('b', 'COMPLETED')


@pytest.mark.parametrize('seed', range(10))
def test_a_cancel_storm_leaves_nothing_behind(seed: int) -> None:
    """Half of the goals are canceled at random moments: each ends once and costs no more."""
    rng = random.Random(seed)
    played = server(n_slots=4)
    after: dict[str, int] = {}

    def cancel(name: str) -> None:
        played.cancel(name)
        after[name] = played.clock()

    def note(message: Message) -> None:
        if isinstance(message, Progress) and message.query_id in after:
            # nothing but the unit that was under way
            assert message.sent_ns - after[message.query_id] <= PREFILL_S * S

    played.on_message = note
    names = [str(number) for number in range(60)]
    for name in names:
        at_s = rng.uniform(0, 10)
        asked = query(name, at_s, at_s + rng.uniform(1, 8), rng.choice(list(Overrun)[1:]), cap=12)
        played.clock.at(
            asked.arrival_ns, lambda asked=asked: played.submit(asked, CHUNK, rng.randint(1, 12)))
        if int(name) % 2:
            played.clock.at(
                asked.arrival_ns + round(rng.uniform(0, 3) * S), lambda name=name: cancel(name))
    played.run()
    assert sorted(played.ended) == sorted(names)
    assert played.engine.n_open == 0
    assert (played.scheduler.n_waiting, played.scheduler.n_running) == (0, 0)
    outcomes = {each.ending.outcome for each in played.ended.values()}
    assert Outcome.CANCELED in outcomes and Outcome.COMPLETED in outcomes


def test_stages_never_go_back() -> None:
    played = server(n_slots=4)
    stages: dict[str, list[Stage]] = {}

    def note(message: Message) -> None:
        if isinstance(message, Progress):
            stages.setdefault(message.query_id, []).append(message.stage)

    played.on_message = note
    for name in 'abcdef':
        asked = query(name, 0.1 * ord(name), 0.1 * ord(name) + 1.2, Overrun.SKIP_NEXT, overrun_s=1)
        played.clock.at(asked.arrival_ns, lambda asked=asked: played.submit(asked, CHUNK, 15))
    played.run()
    assert stages and all(each == sorted(each) for each in stages.values())
