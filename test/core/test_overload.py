# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Where not all can be in time, as many as possible are."""

from itertools import combinations
import random

import pytest

from timebill_ros.budget.admission import needs
from timebill_ros.budget.planner import PlanInputs, PlannerConfig, Planning
from timebill_ros.executor.demand import Pace
from timebill_ros.executor.job import Job
from timebill_ros.executor.overload import giving_way
from timebill_ros.executor.promises import deadline
from timebill_ros.experiments.virtual_server import VirtualServer
from timebill_ros.query import Admission, NS_PER_S, Outcome, Query, Turn
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import CONSTANT, DECODE_STEP, Law, PREFILL, QUADRATIC

# A millisecond per token of the prompt, and 100 for each of the response after the first.
PACE = Pace(Planning(
    TimeEstimator(TimingCoefficients(1, 'device', 'model', 'float32', '1', (
        Law(PREFILL, QUADRATIC, (0.0, 1e-3, 0.0)), Law(DECODE_STEP, CONSTANT, (0.1,)),
        Law(DECODE_STEP, CONSTANT, (0.12,), width=4))), ''), PlannerConfig(), 'file'))


def job(name: str, deadline_s: float, n_prompt: int, n_response: int = 1,
        admission: Admission = Admission.BEST_EFFORT) -> Job:
    end_ns = round(deadline_s * NS_PER_S)
    query = Query(name, [Turn('user', '')], 0, end_ns, end_ns, n_response, True, admission)
    inputs = PlanInputs(n_prompt, n_response, 0.0, 0.0)
    return Job(query, needs(inputs, PACE.planning.estimator, PACE.planning.config, 10_000),
               [1], n_response)


def in_time(jobs: tuple[Job, ...]) -> bool:
    """Tell whether all are, one after the other by deadline."""
    end_ns = 0
    for each in sorted(jobs, key=deadline):
        end_ns += round(each.needs.least_s * NS_PER_S)
        if end_ns > each.query.due_ns:
            return False
    return True


def test_one_at_a_time_as_many_stay_as_can_be_in_time() -> None:
    rng = random.Random(3)
    for _ in range(300):
        jobs = [job(str(number), rng.uniform(0.2, 3.0), rng.randint(100, 1000))
                for number in range(rng.randint(1, 7))]
        gone = giving_way(jobs, 1, PACE, 0)
        stay = tuple(each for each in jobs if each.query_id not in gone)
        most = max(n for n in range(len(jobs) + 1)
                   if any(in_time(some) for some in combinations(jobs, n)))
        assert in_time(stay) and len(stay) == most


def test_the_most_expensive_gives_way_but_nobody_who_has_begun_or_was_promised() -> None:
    jobs = [job('cheap', 1.0, 300), job('long', 1.1, 700), job('last', 1.2, 400)]
    assert giving_way(jobs, 1, PACE, 0) == {'long'}
    jobs[1].running = True
    assert giving_way(jobs, 1, PACE, 0) == {'last'}
    jobs[2] = job('last', 1.2, 400, admission=Admission.GUARANTEED)
    assert giving_way(jobs, 1, PACE, 0) == {'cheap'}


def test_what_decode_steps_cost_is_shared() -> None:
    jobs = [job(str(number), 2.0, 100, 11) for number in range(4)]
    assert len(giving_way(jobs, 1, PACE, 0)) == 3
    assert not giving_way(jobs, 4, PACE, 0)


def whole_answers(seed: int) -> int:
    """Play twice the work that there is time for; returns how many answers came in time."""
    rng = random.Random(seed)
    server = VirtualServer(PACE.planning, n_slots=4, chunk_tokens=500)
    at_s = 0.0
    for number in range(40):
        at_s += rng.expovariate(2.0)
        at_ns, n_prompt, n_response = round(at_s * NS_PER_S), rng.choice((100, 300, 2000)), 20
        query = Query(str(number), [Turn('user', '')], at_ns, at_ns + 8 * NS_PER_S,
                      at_ns + 8 * NS_PER_S, n_response, True)
        server.clock.at(at_ns, lambda query=query, n=n_prompt: server.submit(query, n, 20))
    server.run()
    assert len(server.ended) == 40
    return sum(each.ending.outcome == Outcome.COMPLETED for each in server.ended.values())


def test_more_answers_are_whole_than_by_deadline_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [whole_answers(seed) for seed in range(6)]
    monkeypatch.setattr('timebill_ros.executor.scheduler.giving_way', lambda *_: set())
    by_deadline = [whole_answers(seed) for seed in range(6)]
    assert sum(found) > 1.1 * sum(by_deadline)
