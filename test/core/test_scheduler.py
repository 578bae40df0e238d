# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The scheduler's rules one by one, on a clock of the test's own."""

from dataclasses import replace

from timebill_ros.budget.admission import Needs
from timebill_ros.budget.planner import Plan, PlannerConfig, Planning
from timebill_ros.executor.demand import Pace
from timebill_ros.executor.job import Act, Job, Turn
from timebill_ros.executor.scheduler import Scheduler
from timebill_ros.query import Admission, ErrorCode, Outcome, Overrun, Query, Turn as ChatTurn
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import CONSTANT, DECODE_STEP, Law, PREFILL

S = 1_000_000_000
STEP_S = 0.1
# What a step takes that so many share.
SHARED_S = {1: STEP_S, 2: 0.12, 4: 0.16}


def pace(shared: dict[int, float] | None = None, tiers: tuple[str, ...] = ('',)) -> Pace:
    steps = [
        Law(DECODE_STEP, CONSTANT, (seconds / (1 + index),), tier=tier, width=width)
        for index, tier in enumerate(tiers)
        for width, seconds in (shared or SHARED_S).items()]
    coefficients = TimingCoefficients(
        1, 'device', 'model', 'float32', '1', (Law(PREFILL, CONSTANT, (1.0,)), *steps))
    return Pace(Planning(TimeEstimator(coefficients, tiers[0]), PlannerConfig(), 'file'))


def job(
        name: str, deadline_s: float, worst_s: float = 1.0, least_s: float = 0.1,
        guaranteed: bool = False, arrival_s: float = 0.0, margin_s: float = 0.0,
        unit_s: float = 0.05, tier: str = '', min_tier: str = '', overrun_s: float = 0.0) -> Job:
    """Return a job whose prefill takes ``least_s``, and its steps the rest of ``worst_s``."""
    deadline_ns = round(deadline_s * S)
    query = Query(
        name, [ChatTurn('user', 'hello')], round(arrival_s * S), deadline_ns,
        deadline_ns - round(margin_s * S), max_new_tokens=10, cap_is_clients=False,
        admission=Admission.GUARANTEED if guaranteed else Admission.BEST_EFFORT,
        overrun=Overrun.SKIP_NEXT if overrun_s else Overrun.KILL, min_tier=min_tier,
        overrun_ns=round(overrun_s * S))
    n_worst = 1 + round((worst_s - least_s) / STEP_S)
    cheapest = Plan(tier, 0.0, 0.0, 10, n_worst, n_worst, False, 0.0, 0.0, worst_s - least_s, 0.0)
    return Job(query, Needs(10, least_s, least_s, cheapest, unit_s), [1, 2], cap=n_worst)


def names(turn: Turn | None) -> list[str]:
    return [] if turn is None else [each.query_id for each in turn.jobs]


def turn_begins(scheduler: Scheduler, now_ns: int) -> Turn:
    """Have the scheduler's next turn begin."""
    turn = scheduler.next_turn(now_ns)
    assert turn is not None
    scheduler.begin(turn, now_ns)
    return turn


def begin(scheduler: Scheduler, now_ns: int = 0) -> Job:
    """Have the scheduler begin a query, and take its prefill as done."""
    turn = turn_begins(scheduler, now_ns)
    assert turn.act is Act.BEGIN
    prefilled(scheduler, turn.jobs[0])
    return turn.jobs[0]


def prefilled(scheduler: Scheduler, each: Job) -> None:
    scheduler.progressed(each, replace(
        each.demand, before_s=0.0, unit_s=0.0, likely_before_s=0.0))


def test_earliest_deadline_first_and_no_more_than_there_are_slots() -> None:
    scheduler = Scheduler(pace(), n_slots=2)
    for name, deadline_s in (('late', 90), ('early', 50), ('middle', 70)):
        assert scheduler.submit(job(name, deadline_s), 0) is None
    assert [begin(scheduler).query_id, begin(scheduler).query_id] == ['early', 'middle']
    assert names(scheduler.next_turn(0)) == ['early', 'middle']
    assert (scheduler.n_waiting, scheduler.n_running) == (1, 2)


def test_an_earlier_deadline_preempts_between_two_prefill_chunks() -> None:
    scheduler = Scheduler(pace(), n_slots=2)
    long = job('long', 90, worst_s=6, least_s=5, unit_s=0.5)
    scheduler.submit(long, 0)
    assert turn_begins(scheduler, 0).act is Act.BEGIN
    scheduler.progressed(long, long.demand.after_unit())
    scheduler.submit(job('urgent', 4), 0)
    assert names(scheduler.next_turn(S)) == ['urgent']
    assert names(scheduler.next_turn(S)) == ['urgent']
    urgent = turn_begins(scheduler, S).jobs[0]
    prefilled(scheduler, urgent)
    turn = scheduler.next_turn(S)
    assert turn is not None and turn.act is Act.STEP and names(turn) == ['urgent']
    scheduler.finished(urgent)
    turn = scheduler.next_turn(2 * S)
    assert turn is not None and turn.act is Act.ADVANCE and names(turn) == ['long']


def test_expired_and_dropped_jobs_never_start() -> None:
    scheduler = Scheduler(pace())
    scheduler.submit(job('expires', 2), 0)
    scheduler.submit(job('dropped', 3), 0)
    scheduler.submit(job('stays', 9), 0)
    dropped = scheduler.drop('dropped')
    assert dropped is not None and dropped.query_id == 'dropped'
    assert scheduler.drop('dropped') is None
    (lost, ending), = scheduler.take_lost(2 * S)
    assert lost.query_id == 'expires' and ending.error_msg
    assert ending.outcome == Outcome.DEADLINE_MISSED
    assert names(scheduler.next_turn(2 * S)) == ['stays']
    late = scheduler.submit(job('too late', 2), 3 * S)
    assert late is not None and late.outcome == Outcome.DEADLINE_MISSED


def test_best_effort_is_refused_only_if_prefill_and_one_token_cannot_fit() -> None:
    scheduler = Scheduler(pace())
    assert scheduler.submit(job('risky', 1.0, worst_s=50.0, least_s=0.9), 0) is None
    ending = scheduler.submit(job('hopeless', 1.0, least_s=1.5, margin_s=0.1), 0)
    assert ending is not None
    assert (ending.outcome, ending.error_code) == (Outcome.INFEASIBLE, ErrorCode.BUDGET_TOO_SMALL)
    assert 'at least 1.60 s would do' in ending.error_msg


def test_best_effort_that_waited_too_long_is_told_so_before_its_deadline() -> None:
    scheduler = Scheduler(pace())
    scheduler.submit(job('waits', 2.0, least_s=0.5), 0)
    assert scheduler.take_lost(round(1.4 * S)) == []
    (_, ending), = scheduler.take_lost(round(1.6 * S))
    assert ending.outcome == Outcome.INFEASIBLE and '1.60 s of waiting' in ending.error_msg


def test_guaranteed_counts_what_runs_and_what_waits_before_it() -> None:
    scheduler = Scheduler(pace())
    scheduler.submit(job('runs', 10, worst_s=4), 0)
    begun = turn_begins(scheduler, 0)
    assert names(begun) == ['runs']
    assert scheduler.submit(job('first', 6.5, worst_s=2, guaranteed=True), 0) is None
    ending = scheduler.submit(job('second', 6.7, worst_s=2, guaranteed=True), 0)
    assert ending is not None and ending.outcome == Outcome.INFEASIBLE
    assert 'at least 8.05 s would do' in ending.error_msg
    assert scheduler.submit(job('second', 8.05, worst_s=2, guaranteed=True), 0) is None


def test_guaranteed_must_not_push_out_one_promised_before() -> None:
    scheduler = Scheduler(pace())
    scheduler.submit(job('promised', 3, worst_s=2, guaranteed=True), 0)
    ending = scheduler.submit(job('earlier', 2.5, worst_s=2, guaranteed=True), 0)
    assert ending is not None and ending.outcome == Outcome.INFEASIBLE
    assert 'at least 4.00 s would do' in ending.error_msg
    assert scheduler.submit(job('earlier', 2.5, worst_s=1, guaranteed=True), 0) is None


def test_a_killed_query_holds_its_slot_until_its_step_or_chunk_ends() -> None:
    scheduler = Scheduler(pace())
    scheduler.submit(job('runs', 2, worst_s=50, unit_s=0.5), 0)
    begin(scheduler)
    turn_begins(scheduler, 0)
    ending = scheduler.submit(job('next', 3.4, worst_s=1, guaranteed=True), 0)
    assert ending is not None and 'at least 3.50 s would do' in ending.error_msg
    assert scheduler.submit(job('next', 3.5, worst_s=1, guaranteed=True), 0) is None


def test_a_dropped_query_holds_the_engine_for_one_unit_more() -> None:
    scheduler = Scheduler(pace())
    scheduler.submit(job('runs', 100, worst_s=50), 0)
    begin(scheduler)
    assert scheduler.submit(job('next', 3, worst_s=1, guaranteed=True), 0) is not None
    turn_begins(scheduler, S)
    scheduler.drop('runs')
    assert scheduler.submit(job('next', 2.0, worst_s=1, guaranteed=True), S) is not None
    assert scheduler.submit(job('next', 2.1, worst_s=1, guaranteed=True), S) is None


def decoding(scheduler: Scheduler, *jobs: Job) -> Turn:
    """Have jobs begin, and return the step that they share."""
    for each in jobs:
        assert scheduler.submit(each, 0) is None
        begin(scheduler)
    turn = turn_begins(scheduler, 0)
    assert turn.act is Act.STEP
    return turn


def test_a_step_goes_ahead_if_the_next_turn_is_the_same() -> None:
    scheduler = Scheduler(pace(), n_slots=3)
    turn = decoding(scheduler, job('a', 100, worst_s=50))
    assert scheduler.begin_again(turn, False, S) and scheduler.is_under_way(turn)
    scheduler.ended(True, S)
    assert scheduler.starts_ns(turn, S) == S
    assert scheduler.submit(job('b', 100), S) is None
    other = scheduler.next_turn(S)
    assert other is not None and names(other) == ['b']
    assert scheduler.starts_ns(other, S) == S + turn.worst_ns    # behind the step under way
    scheduler.begin(other, S)
    assert not scheduler.begin_again(turn, True, S)
    scheduler.ended(False, S)
    assert scheduler.starts_ns(other, S) == S


def test_only_who_is_alone_goes_ahead_of_the_token_that_may_end_it() -> None:
    scheduler = Scheduler(pace(), n_slots=2)
    turn = decoding(scheduler, job('a', 100, worst_s=50), job('b', 100, worst_s=50))
    assert scheduler.begin_again(turn, True, S) and not scheduler.begin_again(turn, False, S)
    scheduler = Scheduler(pace(), n_slots=1)
    scheduler.submit(job('a', 50, worst_s=20), 0)
    begin(scheduler)
    scheduler.submit(job('waits', 100), 0)
    turn = turn_begins(scheduler, 0)
    assert scheduler.begin_again(turn, True, S) and not scheduler.begin_again(turn, False, S)


def test_no_step_goes_ahead_that_would_end_behind_a_deadline() -> None:
    scheduler = Scheduler(pace())
    turn = decoding(scheduler, job('a', 3, worst_s=2))
    assert scheduler.begin_again(turn, True, 3 * S - turn.worst_ns)
    assert not scheduler.begin_again(turn, True, 3 * S - turn.worst_ns + 1)


def test_a_step_under_way_counts_where_something_is_promised() -> None:
    scheduler = Scheduler(pace(), n_slots=2)
    turn = decoding(scheduler, job('runs', 100, worst_s=50))
    assert scheduler.begin_again(turn, True, S)
    scheduler.ended(True, S)
    assert scheduler.submit(job('next', 2.09, worst_s=1, guaranteed=True), S) is not None
    assert scheduler.submit(job('next', 2.1, worst_s=1, guaranteed=True), S) is None


def test_no_step_in_vain_beyond_the_slack_of_a_promise() -> None:
    scheduler = Scheduler(pace(), n_slots=2)
    turn = decoding(scheduler, job('runs', 4, worst_s=1), job('kept', 2.3, 2.0, guaranteed=True))
    assert scheduler.begin_again(turn, True, 0)
    assert not scheduler.begin_again(turn, True, S)


def test_best_effort_waits_if_it_would_endanger_a_promise() -> None:
    scheduler = Scheduler(pace(), n_slots=2)
    scheduler.submit(job('promised', 3.02, worst_s=3, guaranteed=True), 0)
    scheduler.submit(job('urgent', 2, worst_s=1), 0)
    promised = begin(scheduler)
    assert promised.query_id == 'promised'
    assert names(scheduler.next_turn(round(0.1 * S))) == ['promised']
    scheduler.progressed(promised, replace(promised.demand, steps=5))
    assert names(scheduler.next_turn(round(0.2 * S))) == ['urgent']


def test_a_free_slot_is_kept_for_a_promise_that_waits_for_one() -> None:
    scheduler = Scheduler(pace(), n_slots=1)
    scheduler.submit(job('promised', 60, worst_s=3, guaranteed=True), 0)
    scheduler.submit(job('urgent', 20, worst_s=3), 0)
    assert names(scheduler.next_turn(0)) == ['promised']


def test_who_holds_the_only_slot_goes_on_for_the_promise_that_waits_for_it() -> None:
    scheduler = Scheduler(pace(), n_slots=2)
    scheduler.submit(job('a', 100, worst_s=2), 0)
    scheduler.submit(job('b', 100, worst_s=9), 0)
    begin(scheduler)
    begin(scheduler)
    assert scheduler.submit(job('promised', 3.4, worst_s=1, guaranteed=True), 0) is None
    # Together both would take longer: the one that is nearest to its end goes first, alone.
    assert names(scheduler.next_turn(round(0.49 * S))) == ['a']


def test_a_step_is_shared_while_all_still_make_it() -> None:
    scheduler = Scheduler(pace(), n_slots=4)
    scheduler.submit(job('tight', 2.3, worst_s=2.1), 0)
    begin(scheduler)
    scheduler.submit(job('loose', 90, worst_s=5), 0)
    assert names(scheduler.next_turn(0)) == ['tight']       # two would take 2.4 s
    tight, = scheduler.next_turn(0).jobs
    scheduler.progressed(tight, replace(tight.demand, steps=10, likely_steps=10))
    assert names(turn_begins(scheduler, round(0.1 * S))) == ['loose']
    loose, = [each for each in scheduler._running.values() if each is not tight]
    prefilled(scheduler, loose)
    turn = scheduler.next_turn(round(0.2 * S))
    assert names(turn) == ['tight', 'loose'] and turn is not None and turn.act is Act.STEP


def test_a_shared_step_runs_in_the_fastest_tier_that_one_of_them_needs() -> None:
    scheduler = Scheduler(pace(tiers=('bf16', 'int8')), n_slots=4)
    for name, tier, least in (('a', 'bf16', ''), ('b', 'int8', ''), ('c', 'bf16', 'bf16')):
        scheduler.submit(job(name, 90 + ord(name), tier=tier, min_tier=least), 0)
        begin(scheduler)
    turn = scheduler.next_turn(0)
    assert names(turn) == ['a', 'b'] and turn is not None and turn.tier == 'int8'
    # whose lowest tier is better than that has steps of its own once the others have ended


def test_promises_that_only_fit_together_are_made_and_kept_together() -> None:
    scheduler = Scheduler(pace(), n_slots=4)
    for name in 'abcd':     # in turn 4 x 1.1 s, together 4 x 0.1 s and 10 steps of 0.16 s
        assert scheduler.submit(job(name, 2.1, worst_s=1.1, guaranteed=True), 0) is None
    ending = scheduler.submit(job('e', 2.1, worst_s=1.1, guaranteed=True), 0)
    assert ending is not None and ending.outcome == Outcome.INFEASIBLE
    for now_s in (0.1, 0.2, 0.3, 0.4):
        begin(scheduler, round((now_s - 0.1) * S))
    assert sorted(names(scheduler.next_turn(round(0.4 * S)))) == ['a', 'b', 'c', 'd']


def test_a_query_that_outgrows_its_worst_case_loses_its_promise() -> None:
    scheduler = Scheduler(pace(), n_slots=2)
    scheduler.submit(job('longer', 9, worst_s=2, guaranteed=True), 0)
    longer = begin(scheduler)
    longer.outgrown = True
    scheduler.progressed(longer, replace(longer.demand, steps=60))
    assert scheduler.submit(job('next', 3, worst_s=2, guaranteed=True), 0) is None


def test_every_eighth_to_begin_has_the_earliest_deadline_likely_or_not() -> None:
    scheduler = Scheduler(pace(), n_slots=1)
    scheduler.submit(job('unlikely', 40, worst_s=60), 0)
    order = []
    for number in range(9):
        scheduler.submit(job(str(number), 50 + number), 0)
    while scheduler.n_waiting:
        begun = begin(scheduler)
        order.append(begun.query_id)
        scheduler.finished(begun)
    assert order.index('unlikely') == 7
