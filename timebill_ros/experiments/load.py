# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Recorded arrivals played to the executor, on a virtual clock or on a real engine.

Each query's deadline is a multiple of its solo time, which the timing laws predict; its response
has exactly the recorded length. Ours and first-come-first-served do the same work: nothing is
evicted, every step is in the best tier, a query ends at its deadline at the latest.
"""

from contextlib import nullcontext
import csv
from dataclasses import dataclass
from datetime import datetime
import gzip
from pathlib import Path
import time
from typing import Any

from timebill_ros.budget.admission import needs
from timebill_ros.budget.planner import PlanInputs, PlannerConfig, Planning
from timebill_ros.executor.demand import Pace
from timebill_ros.executor.dispatcher import Dispatcher
from timebill_ros.executor.job import Job, Turn
from timebill_ros.executor.messages import Finished
from timebill_ros.executor.scheduler import Scheduler
from timebill_ros.experiments.virtual_server import VirtualServer
from timebill_ros.query import NS_PER_S, Outcome, Query, Sampling, Turn as ChatTurn
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import Behind


@dataclass(frozen=True)
class Arrival:
    """One recorded query; ``at_s`` counts from the first."""

    at_s: float
    n_prompt: int
    n_response: int


@dataclass(frozen=True)
class Result:
    """What came of a run."""

    asked: int
    met: int                # whole answers in time
    tokens_per_s: float     # of those answers, over the span of the run
    busy_share: float       # of the span that the engine worked

    @property
    def share_met(self) -> float:
        """Share of the deadlines that were met."""
        return self.met / self.asked


class FirstComeFirstServed(Scheduler):
    """The baseline: one query at a time, in the order of arrival."""

    def __init__(self, pace: Pace, n_slots: int = 1) -> None:
        """Use one slot, however many there are."""
        super().__init__(pace, 1)

    def _decide(self, now_ns: int) -> Turn | None:
        for jobs in (self._running, self._waiting):
            if jobs:
                return self._unit_of(min(jobs.values(), key=lambda job: job.query.arrival_ns))
        return None


def read_trace(path: Path, count: int, max_context: int, skip: int = 0) -> list[Arrival]:
    """Read ``count`` arrivals of an Azure LLM inference trace, cut to the context."""
    arrivals: list[Arrival] = []
    with gzip.open(path, 'rt', encoding='utf-8') as lines:
        for number, row in enumerate(csv.DictReader(lines)):
            if number < skip:
                continue
            at = datetime.fromisoformat(row['TIMESTAMP'][:26]).timestamp()
            n_response = max(1, min(int(row['GeneratedTokens']), max_context // 2))
            n_prompt = max(1, min(int(row['ContextTokens']), max_context - n_response))
            arrivals.append(Arrival(at, n_prompt, n_response))
            if len(arrivals) == count:
                break
    first_s = arrivals[0].at_s
    return [Arrival(each.at_s - first_s, each.n_prompt, each.n_response) for each in arrivals]


def planning_for(coefficients: TimingCoefficients) -> Planning:
    """Return what both plan with: the best tier, nothing evicted."""
    estimator = TimeEstimator(coefficients, coefficients.tiers[0])
    return Planning(estimator, PlannerConfig(policy='fixed'), 'profile')


def solo_s(planning: Planning, arrival: Arrival) -> float:
    """Return the expected time of a query that has the engine to itself."""
    estimator = planning.estimator
    return (estimator.prefill_s(arrival.n_prompt)
            + estimator.decode_s(
                arrival.n_prompt, arrival.n_response - 1, behind=Behind(arrival.n_prompt))
            + estimator.overhead_s(arrival.n_response))


def at_load(planning: Planning, arrivals: list[Arrival], load: float) -> list[Arrival]:
    """Return the arrivals at ``load`` times the rate at which one-at-a-time service keeps up."""
    work_s = sum(solo_s(planning, each) for each in arrivals)
    stretch = work_s / load / max(arrivals[-1].at_s, 1e-9)
    return [Arrival(each.at_s * stretch, each.n_prompt, each.n_response) for each in arrivals]


def query_of(planning: Planning, name: str, arrival: Arrival, from_ns: int, slack: float) -> Query:
    """Return the query of an arrival; its deadline is ``slack`` times its solo time."""
    at_ns = from_ns + round(arrival.at_s * NS_PER_S)
    deadline_ns = at_ns + round(slack * solo_s(planning, arrival) * NS_PER_S)
    return Query(
        name, [ChatTurn('user', '')], at_ns, deadline_ns, deadline_ns, arrival.n_response, True,
        sampling=Sampling())


def play_virtually(
        planning: Planning, arrivals: list[Arrival], slack: float, scheduler: type[Any],
        n_slots: int, chunk_tokens: int) -> Result:
    """Play the arrivals on a virtual clock, with an engine as fast as the laws say."""
    server = VirtualServer(planning, n_slots, chunk_tokens, scheduler_class=scheduler)
    for number, arrival in enumerate(arrivals):
        query = query_of(planning, str(number), arrival, 0, slack)
        server.clock.at(query.arrival_ns, lambda query=query, arrival=arrival: server.submit(
            query, arrival.n_prompt, arrival.n_response))
    server.run()
    return _result(
        server.ended, arrivals, server.clock() / NS_PER_S, server.engine.busy_ns / NS_PER_S)


def play_really(
        planning: Planning, engine: Any, arrivals: list[Arrival], slack: float,
        scheduler: type[Any], n_slots: int) -> Result:
    """
    Play the arrivals in real time on an engine, whose responses do not end by themselves.

    Time in which nobody waits or runs is counted, but not waited for.
    """
    clock = _LeapingClock()
    queue = scheduler(Pace(planning), n_slots)
    dispatcher = Dispatcher(engine, queue, nullcontext(), clock)
    began_ns = clock()
    waiting = [
        (query_of(planning, str(number), arrival, began_ns, slack), arrival)
        for number, arrival in enumerate(arrivals)]
    ended: dict[str, Finished] = {}
    busy_ns = 0
    while waiting or queue.n_waiting or queue.n_running:
        while waiting and waiting[0][0].arrival_ns <= clock():
            query, arrival = waiting.pop(0)
            job = _job(planning, engine, query, arrival)
            ending = queue.submit(job, clock())
            if ending is not None:
                ended[query.query_id] = dispatcher.never_ran(job, ending)
        from_ns = clock()
        messages = dispatcher.work()
        if messages is None:
            if waiting:
                clock.leap_to(waiting[0][0].arrival_ns)
            continue
        busy_ns += clock() - from_ns
        ended.update({each.query_id: each for each in messages if isinstance(each, Finished)})
    return _result(ended, arrivals, (clock() - began_ns) / NS_PER_S, busy_ns / NS_PER_S)


class _LeapingClock:
    """The steady clock, ahead by what it was made to leave out; nanoseconds."""

    def __init__(self) -> None:
        self._ahead_ns = 0

    def __call__(self) -> int:
        return time.monotonic_ns() + self._ahead_ns

    def leap_to(self, at_ns: int) -> None:
        """Leave out the time until then."""
        self._ahead_ns += max(0, at_ns - self())


class EndlessEngine:
    """An engine whose responses run to their cap: no token ends them."""

    end_ids = ()

    def __init__(self, engine: Any) -> None:
        """Pass everything else on to ``engine``."""
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        """Return the engine's."""
        return getattr(self._engine, name)


def most_met(results: dict[float, Result], share: float = 0.95) -> float:
    """Return the highest load up to which at least ``share`` of the deadlines were met."""
    best = 0.0
    for load in sorted(results):
        if results[load].share_met < share:
            break
        best = load
    return best


def _job(planning: Planning, engine: Any, query: Query, arrival: Arrival) -> Job:
    inputs = PlanInputs(arrival.n_prompt, arrival.n_response, 0.0, query.alpha_max)
    prompt = [7 + index % (engine.info.vocab_size - 7) for index in range(arrival.n_prompt)]
    return Job(query, needs(inputs, planning.estimator, planning.config, engine.chunk_tokens),
               prompt, arrival.n_response)


def _result(ended: dict[str, Finished], arrivals: list[Arrival], span_s: float,
            busy_s: float) -> Result:
    met = [name for name, each in ended.items() if each.ending.outcome == Outcome.COMPLETED]
    tokens = sum(arrivals[int(name)].n_response for name in met)
    return Result(len(arrivals), len(met), tokens / span_s, busy_s / span_s)
