# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Carries out what the scheduler decides, unit by unit; no thread and no clock of its own."""

from collections.abc import Callable
from contextlib import AbstractContextManager
import time
from typing import TYPE_CHECKING

from timebill_ros.engine.pipeline import Message, QueryRun, Room
from timebill_ros.engine.shared_step import decode_together
from timebill_ros.engine.timing_record import TimingRecord
from timebill_ros.executor.demand import demand_of_running
from timebill_ros.executor.job import Act, Job, Turn
from timebill_ros.executor.messages import Finished
from timebill_ros.executor.scheduler import Scheduler
from timebill_ros.query import Ending, NS_PER_S

if TYPE_CHECKING:
    from timebill_ros.engine.engine import Engine


class Dispatcher:
    """
    The queries that have a slot in the engine, worked on as the scheduler says.

    One thread calls ``work``; another may call ``drop`` and the scheduler, if it holds ``lock``.
    """

    def __init__(
            self, engine: 'Engine', scheduler: Scheduler, lock: AbstractContextManager[object],
            clock: Callable[[], int] = time.monotonic_ns) -> None:
        """Start with no query; ``clock`` is the steady clock in nanoseconds."""
        self._engine = engine
        self._scheduler = scheduler
        self._lock = lock
        self._clock = clock
        self._runs: dict[str, QueryRun] = {}
        self._jobs: dict[str, Job] = {}
        self._worked: list[QueryRun] = []       # in the latest turn
        self._noting_s = 0.0                    # what it took to note how far they are

    def work(self) -> list[Message] | None:
        """
        Do one unit of work; returns what to send, or None where nobody waits or runs.

        Queries whose time is up, or that were dropped, end first and cost no work; what they are
        told does not wait for the unit that would come next, which may be long.
        """
        began_ns = self._clock()
        messages = self._end_lost()
        with self._lock:
            turn = self._scheduler.next_turn(self._clock())
            if turn is not None:
                messages += self._end_before(turn)
            if turn is None or messages:
                self._worked = []
                return messages or None
            self._scheduler.begin(turn, self._clock())
        self._worked = self._runs_of(turn)
        self._tell((self._clock() - began_ns) / NS_PER_S)
        self._make_way(turn)
        messages = self._do(turn)
        done_ns = self._clock()
        self._note(turn.jobs)
        self._worked = self._runs_of(turn)
        self._noting_s = (self._clock() - done_ns) / NS_PER_S
        return messages

    def told(self, seconds: float) -> None:
        """Count what it took to send what the latest ``work`` returned, and to note it."""
        self._tell(seconds + self._noting_s)

    def _tell(self, seconds: float) -> None:
        for run in self._worked:
            run.told(seconds / len(self._worked))

    def _runs_of(self, turn: Turn) -> list[QueryRun]:
        return [self._runs[job.query_id] for job in turn.jobs if job.query_id in self._runs]

    def _make_way(self, turn: Turn) -> None:
        """Wait for what went ahead of its turn, which this one is not; a step is undone."""
        step = self._engine.ahead
        if self._scheduler.is_under_way(turn) if step else turn.act is not Act.BEGIN:
            return
        began_ns = self._clock()
        self._engine.settle()
        waited_s = (self._clock() - began_ns) / NS_PER_S
        for run in self._runs.values():     # to others it is somebody else's turn by now
            own = run in self._worked if step else run.plan is None
            run.settled(waited_s if own else 0.0)

    def drop(self, query_id: str) -> None:
        """Have a query that runs end before its next unit."""
        run = self._runs.get(query_id)
        if run is not None:
            run.drop()

    def abort_all(self, ending: Ending) -> list[Message]:
        """End every query, those that wait and those that run."""
        with self._lock:
            waiting = self._scheduler.drop_all()
        messages: list[Message] = [run.abort(ending) for run in self._runs.values()]
        self._note(tuple(self._jobs.values()))
        return messages + [self.never_ran(job, ending) for job in waiting]

    def never_ran(self, job: Job, ending: Ending) -> Finished:
        """Return the end of a query that did not get as far as the engine."""
        planning = self._scheduler.pace.planning
        record = TimingRecord(
            job.query, job.needs.n_prompt, job.cap, job.tokenize_s, planning)
        record.refused(job.needs, self._clock())
        return Finished(job.query_id, ending, '', record.timing, last_token_ns=0)

    def _end_lost(self) -> list[Message]:
        with self._lock:
            lost = self._scheduler.take_lost(self._clock())
        messages: list[Message] = [self.never_ran(job, ending) for job, ending in lost]
        for run in self._runs.values():
            messages += run.end_if_over()
        over = tuple(self._jobs[run.query_id] for run in self._runs.values() if run.done)
        if over:
            self._note(over)
        return messages

    def _end_before(self, turn: Turn) -> list[Message]:
        """End those that we cut short in time and could not after this turn's worst case."""
        now_ns = self._clock()
        worst_ns = self._scheduler.starts_ns(turn, now_ns) - now_ns + turn.worst_ns
        messages = [
            each for run in self._runs.values()
            for each in run.end_in_time(worst_ns, turn.act is Act.STEP)]
        if messages:
            self._note(tuple(self._jobs[run.query_id] for run in self._runs.values() if run.done))
        return messages

    def _do(self, turn: Turn) -> list[Message]:
        if turn.act is Act.STEP:
            return decode_together(
                self._worked, turn.tier, lambda over: self._begin_again(turn, over))
        job, = turn.jobs
        if turn.act is Act.BEGIN:
            self._begin(job)
        run = self._runs.get(job.query_id)      # it may have landed
        return [] if run is None else run.advance()

    def _begin_again(self, turn: Turn, over: bool) -> bool:
        with self._lock:
            return self._scheduler.begin_again(turn, over, self._clock())

    def _begin(self, job: Job) -> None:
        def room(now_ns: int) -> Room:
            with self._lock:
                room_ns, width = self._scheduler.room_ns(job, now_ns)
            return Room(room_ns / NS_PER_S, width)

        self._jobs[job.query_id] = job
        run = QueryRun(
            self._engine, job.query, job.prompt_ids, job.cap, self._scheduler.pace.planning,
            job.tokenize_s, self._clock, room)
        self._runs[job.query_id] = run
        if job.dropped:     # looked at only now: from here on ``drop`` finds the run
            run.drop()

    def _note(self, jobs: tuple[Job, ...]) -> None:
        """Tell the scheduler how far these are."""
        ended = False
        with self._lock:
            self._scheduler.ended(self._engine.ahead, self._clock())
            for job in jobs:
                run = self._runs.get(job.query_id)
                if run is None:
                    continue
                if run.done:
                    ended = True
                    self._scheduler.finished(job)
                    del self._runs[job.query_id], self._jobs[job.query_id]
                    continue
                job.planned, job.outgrown = run.plan is not None, run.outgrown
                self._scheduler.progressed(job, demand_of_running(
                    run, job.needs, self._engine.chunk_tokens))
        if ended:
            self._engine.check_device()
