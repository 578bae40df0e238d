# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Random scenarios on a virtual clock, through the real scheduler, planner and queries.

Lengths stay within the cap that was planned with and times within their worst case; everything
else is left to chance: what arrives when, cancels, how long each unit takes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
import random

import pytest
from told_lengths import Predictor

from timebill_ros.budget.planner import PlannerConfig, Planning
from timebill_ros.experiments.virtual_server import VirtualServer
from timebill_ros.query import Admission, Outcome, Overrun, Query, Turn
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import (
    AFFINE, CONSTANT, DECODE_STEP, EVICT, Law, OVERHEAD, PREFILL, RECOVERY, SATURATING)

S = 1_000_000_000
WORST = 1.6
SCENARIOS = 10_000
PARTS = 10


def planning(policy: str = 'paper', recovers: bool = False) -> Planning:
    """
    Return laws of a small machine: steps of 10 ms, a shared one little slower.

    If it ``recovers`` the steps right behind a longer prompt are slower as well.
    """
    def law(name: str, *line: float, **more: object) -> Law:
        return Law(name, AFFINE, line, worst_ratio=WORST, **more)   # type: ignore[arg-type]

    steps = [
        law(DECODE_STEP, 2e-5, base * tier_factor, tier=tier, width=width)
        for tier, tier_factor in (('bf16', 1.0), ('int8', 0.6))
        for width, base in ((1, 0.010), (2, 0.012), (4, 0.015))]
    coefficients = TimingCoefficients(1, 'device', 'model', 'bf16', '1', (
        law(PREFILL, 2e-4, 0.002), law(EVICT, 1e-6, 0.001),
        Law(OVERHEAD, CONSTANT, (0.0,)), *steps, *(
            Law(RECOVERY, SATURATING, (0.001, most_s / 2, most_s), (200.0, 2.0, 5.0), tier=tier)
            for tier, most_s in (('bf16', 0.01), ('int8', 0.03)) if recovers)))
    return Planning(
        TimeEstimator(coefficients, 'bf16'), PlannerConfig(policy=policy), 'file')


PLANNINGS = [planning(policy, recovers)
             for policy in ('paper', 'joint') for recovers in (False, True)]


@dataclass
class Ask:
    """One query of a scenario."""

    query: Query
    n_prompt: int
    length: int
    canceled: bool = False


def scenario(rng: random.Random) -> Iterator[Ask]:
    busy = rng.choice((0.05, 0.2, 1.0))
    at_ns = 0
    for number in range(rng.randint(2, 6)):
        at_ns += round(rng.expovariate(1 / busy) * S) if rng.random() < 0.7 else 0
        n_prompt, cap = rng.choice((20, 100, 400)), rng.choice((1, 3, 6, 10))
        budget_ns = round(rng.uniform(0.02, 0.6) * S)
        overrun = rng.choice(list(Overrun)[1:])
        query = Query(
            str(number), [Turn('user', '')], at_ns, at_ns + budget_ns, at_ns + budget_ns,
            cap, True, rng.choice((Admission.GUARANTEED, Admission.BEST_EFFORT)), overrun,
            min_tier=rng.choice(('', '', 'bf16')),
            overrun_ns=S // 5 if overrun is Overrun.SKIP_NEXT else 0,
            handover_ns=rng.choice((0, 0, S // 200)))
        yield Ask(query, n_prompt, rng.choice((rng.randint(1, cap), cap, cap + 5)))


def play(rng: random.Random) -> tuple[VirtualServer, list[Ask]]:
    slow = rng.choice((1.0, WORST))
    server = VirtualServer(
        rng.choice(PLANNINGS), n_slots=rng.choice((1, 2, 4)), chunk_tokens=128,
        factor=lambda law, width: WORST if slow > 1.0 else rng.uniform(0.2, WORST),
        beside=rng.choice((0.0, 0.5, 0.9)))
    asks = list(scenario(rng))
    for ask in asks:
        server.clock.at(
            ask.query.arrival_ns,
            lambda ask=ask: server.submit(ask.query, ask.n_prompt, ask.length))
        if rng.random() < 0.15:
            ask.canceled = True
            server.clock.at(
                ask.query.arrival_ns + round(rng.random() * 0.3 * S),
                lambda ask=ask: server.cancel(ask.query.query_id))
    server.run()
    return server, asks


@pytest.mark.parametrize('part', range(PARTS))
def test_no_promise_is_broken_and_every_query_ends_once(part: int) -> None:
    admitted = 0
    for number in range(part * SCENARIOS // PARTS, (part + 1) * SCENARIOS // PARTS):
        server, asks = play(random.Random(number))
        assert sorted(server.ended) == sorted(ask.query.query_id for ask in asks)
        scheduler = server.scheduler
        assert not (server.engine.n_open or scheduler.n_running or scheduler.n_waiting)
        for ask in asks:
            outcome = server.ended[ask.query.query_id].ending.outcome
            if outcome in (Outcome.COMPLETED, Outcome.TRUNCATED):   # and the node hears of it then
                assert server.ended_ns[ask.query.query_id] <= ask.query.plan_deadline_ns
            if ask.query.admission == Admission.GUARANTEED and not ask.canceled:
                assert outcome in (Outcome.COMPLETED, Outcome.INFEASIBLE), (number, ask)
                if outcome != Outcome.INFEASIBLE:
                    admitted += 1
                    assert server.ended_ns[ask.query.query_id] <= ask.query.due_ns
    assert admitted > SCENARIOS // PARTS


def test_a_promise_stands_against_answers_longer_than_predicted() -> None:
    kept = 0
    for number in range(350, 450):
        rng = random.Random(number)
        server = VirtualServer(
            Planning(PLANNINGS[1].estimator, PlannerConfig(pessimistic_factor=1.2), 'file'),
            n_slots=rng.choice((1, 2)), chunk_tokens=128,
            factor=lambda law, width, rng=rng: rng.uniform(0.2, WORST))
        server.engine.predictor = Predictor(rng.uniform(2.0, 30.0))
        at_ns = 0
        for index in range(rng.randint(4, 12)):
            at_ns += round(rng.expovariate(20.0) * S)
            promised = rng.random() < 0.3
            cap = 1 if promised else 40
            end_ns = at_ns + round(rng.uniform(0.05, 1.0) * S)
            query = Query(
                f'{index} {promised}', [Turn('user', '')], at_ns, end_ns, end_ns, cap, True,
                Admission.GUARANTEED if promised else Admission.BEST_EFFORT)
            server.clock.at(at_ns, lambda query=query, length=rng.randint(1, cap): server.submit(
                query, 100, length))
        server.run()
        for query_id, finished in server.ended.items():
            if query_id.endswith('True'):
                kept += finished.ending.outcome == Outcome.COMPLETED
                assert finished.ending.outcome in (Outcome.COMPLETED, Outcome.INFEASIBLE), number
    assert kept > 40


def test_a_promise_that_was_outgrown_does_not_come_back() -> None:
    server = VirtualServer(
        Planning(PLANNINGS[1].estimator, PlannerConfig(pessimistic_factor=1.2), 'file'),
        n_slots=1, chunk_tokens=128, factor=lambda law, width: 1.3)
    server.engine.predictor = Predictor(10.0)
    stands: list[bool] = []
    server.on_message = lambda message: stands.extend(
        job.promised for job in server.scheduler._running.values())
    server.submit(
        Query('q', [Turn('user', '')], 0, 8 * S // 10, 8 * S // 10, 60, True,
              Admission.GUARANTEED), 100, 50)
    server.run()
    finished = server.ended['q']
    assert finished.ending.outcome == Outcome.COMPLETED
    assert finished.timing.replans      # with a worst case beyond the one that was promised
    assert stands == sorted(stands, reverse=True) and {True, False} == set(stands)
