# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The scheduler on a virtual clock: order, admission, expiry, and promises kept."""

import random

import pytest

from timebill_ros.budget.admission import Needs
from timebill_ros.budget.planner import Plan
from timebill_ros.executor.scheduler import Job, Scheduler
from timebill_ros.query import Admission, Ending, ErrorCode, Outcome, Query, Turn

S = 1_000_000_000


def job(
        name: str, deadline_s: float, worst_s: float = 1.0, least_s: float = 0.1,
        guaranteed: bool = False, arrival_s: float = 0.0, margin_s: float = 0.0,
        unit_s: float = 0.0) -> Job:
    deadline_ns = round(deadline_s * S)
    query = Query(
        name, [Turn('user', 'hello')], round(arrival_s * S), deadline_ns,
        deadline_ns - round(margin_s * S), max_new_tokens=10, cap_is_clients=False,
        admission=Admission.GUARANTEED if guaranteed else Admission.BEST_EFFORT)
    cheapest = Plan('', 0.0, 0.0, 10, 10, 10, False, 0.0, 0.0, worst_s - least_s, 0.0)
    return Job(query, Needs(10, least_s, least_s, cheapest, unit_s), [1, 2], cap=10)


def name_of(chosen: Job | None) -> str | None:
    return None if chosen is None else chosen.query.query_id


def test_earliest_deadline_first_and_one_at_a_time() -> None:
    scheduler = Scheduler()
    for name, deadline_s in (('late', 9), ('early', 5), ('middle', 7)):
        assert scheduler.submit(job(name, deadline_s), 0) is None
    assert name_of(scheduler.next_run(0)) == 'early'
    assert scheduler.next_run(0) is None
    assert (scheduler.n_waiting, scheduler.n_running) == (2, 1)
    scheduler.finished()
    assert name_of(scheduler.next_run(S)) == 'middle'


def test_expired_and_dropped_jobs_never_start() -> None:
    scheduler = Scheduler()
    scheduler.submit(job('expires', 2), 0)
    scheduler.submit(job('dropped', 3), 0)
    scheduler.submit(job('stays', 9), 0)
    assert name_of(scheduler.drop('dropped')) == 'dropped'
    assert scheduler.drop('dropped') is None
    (lost, ending), = scheduler.take_lost(2 * S)
    assert name_of(lost) == 'expires' and ending.error_msg
    assert ending.outcome == Outcome.DEADLINE_MISSED
    assert name_of(scheduler.next_run(2 * S)) == 'stays'
    assert scheduler.submit(job('too late', 2), 3 * S).outcome == Outcome.DEADLINE_MISSED


def test_an_expired_job_is_not_chosen_even_if_nobody_looked_for_it() -> None:
    scheduler = Scheduler()
    scheduler.submit(job('expired', 2), 0)
    assert scheduler.next_run(2 * S) is None


def test_best_effort_is_refused_only_if_prefill_and_one_token_cannot_fit() -> None:
    scheduler = Scheduler()
    assert scheduler.submit(job('risky', 1.0, worst_s=50.0, least_s=0.9), 0) is None
    ending = scheduler.submit(job('hopeless', 1.0, least_s=1.5, margin_s=0.1), 0)
    assert (ending.outcome, ending.error_code) == (Outcome.INFEASIBLE, ErrorCode.BUDGET_TOO_SMALL)
    assert 'at least 1.60 s would do' in ending.error_msg


def test_best_effort_that_waited_too_long_is_told_so_before_its_deadline() -> None:
    scheduler = Scheduler()
    scheduler.submit(job('waits', 2.0, least_s=0.5), 0)
    assert scheduler.take_lost(round(1.4 * S)) == []
    (_, ending), = scheduler.take_lost(round(1.6 * S))
    assert ending.outcome == Outcome.INFEASIBLE and '1.60 s of waiting' in ending.error_msg


def test_guaranteed_counts_what_runs_and_what_waits_before_it() -> None:
    scheduler = Scheduler()
    scheduler.submit(job('runs', 10, worst_s=4), 0)
    scheduler.next_run(0)
    assert scheduler.submit(job('first', 6, worst_s=2, guaranteed=True), 0) is None
    ending = scheduler.submit(job('second', 6.5, worst_s=2, guaranteed=True), 0)
    assert ending.outcome == Outcome.INFEASIBLE and 'at least 8.00 s would do' in ending.error_msg
    assert scheduler.submit(job('second', 8.0, worst_s=2, guaranteed=True), 0) is None
    scheduler.running_until(2 * S)
    assert scheduler.submit(job('third', 8.0, worst_s=2, guaranteed=True), 0) is None


def test_guaranteed_must_not_push_out_one_promised_before() -> None:
    scheduler = Scheduler()
    scheduler.submit(job('promised', 3, worst_s=2, guaranteed=True), 0)
    ending = scheduler.submit(job('earlier', 2.5, worst_s=2, guaranteed=True), 0)
    assert ending.outcome == Outcome.INFEASIBLE and 'at least 4.00 s would do' in ending.error_msg
    assert scheduler.submit(job('earlier', 2.5, worst_s=1, guaranteed=True), 0) is None


def test_a_killed_query_holds_the_engine_until_its_step_or_chunk_ends() -> None:
    scheduler = Scheduler()
    scheduler.submit(job('runs', 2, worst_s=50, unit_s=0.5), 0)
    scheduler.next_run(0)
    ending = scheduler.submit(job('next', 3.4, worst_s=1, guaranteed=True), 0)
    assert 'at least 3.50 s would do' in ending.error_msg
    assert scheduler.submit(job('next', 3.5, worst_s=1, guaranteed=True), 0) is None


def test_a_dropped_query_holds_the_engine_for_one_unit_more() -> None:
    scheduler = Scheduler()
    scheduler.submit(job('runs', 100, worst_s=50, unit_s=0.5), 0)
    scheduler.next_run(0)
    assert scheduler.submit(job('next', 3, worst_s=1, guaranteed=True), 0) is not None
    scheduler.stop_running(S)
    assert scheduler.submit(job('next', 2.5, worst_s=1, guaranteed=True), S) is None


def test_best_effort_waits_if_it_would_endanger_a_promise() -> None:
    scheduler = Scheduler()
    scheduler.submit(job('promised', 5, worst_s=3, guaranteed=True), 0)
    scheduler.submit(job('urgent', 4, worst_s=3), 0)
    assert name_of(scheduler.next_run(0)) == 'promised'
    scheduler.finished()
    scheduler.submit(job('promised again', 8, worst_s=3, guaranteed=True), 0)
    assert name_of(scheduler.next_run(0)) == 'urgent'


@pytest.mark.parametrize('seed', range(20))
def test_no_promise_is_broken_whatever_arrives(seed: int) -> None:
    """Work takes up to its worst case; each query has one ending and each promise is kept."""
    rng = random.Random(seed)
    for _ in range(60):
        endings = _simulate(rng, n_jobs=25)
        assert sorted(endings) == sorted(str(i) for i in range(25))


def _simulate(rng: random.Random, n_jobs: int) -> dict[str, str]:
    arrivals = sorted(rng.uniform(0, 30) for _ in range(n_jobs))
    jobs: list[Job] = [
        job(str(i), at + rng.uniform(0.1, 12), worst_s=rng.uniform(0.3, 4), least_s=0.2,
            guaranteed=rng.random() < 0.5, arrival_s=at, unit_s=0.3)
        for i, at in enumerate(arrivals)]
    scheduler, endings, free_ns = Scheduler(), {}, 0

    def run_until(until_ns: int | None) -> None:
        nonlocal free_ns
        while until_ns is None or free_ns < until_ns:
            for lost, _ in scheduler.take_lost(free_ns):
                assert not lost.guaranteed
                endings[lost.query.query_id] = 'lost'
            scheduler.finished()
            chosen = scheduler.next_run(free_ns)
            if chosen is None:
                break
            worst_ns = round(chosen.needs.worst_s * S)
            end_ns = free_ns + (worst_ns if rng.random() < 0.5 else round(rng.random() * worst_ns))
            overdue = end_ns > chosen.query.plan_deadline_ns
            assert not (overdue and chosen.guaranteed)
            if overdue:
                unit_ns = round(rng.random() * chosen.needs.unit_s * S)
                end_ns = min(end_ns, chosen.query.plan_deadline_ns + unit_ns)
            endings[chosen.query.query_id] = 'missed' if overdue else 'done'
            free_ns = end_ns

    for each in jobs:
        now_ns = each.query.arrival_ns
        run_until(now_ns)
        free_ns = max(free_ns, now_ns)
        refusal: Ending | None = scheduler.submit(each, now_ns)
        if refusal is not None:
            endings[each.query.query_id] = refusal.outcome.name
    run_until(None)
    return endings
