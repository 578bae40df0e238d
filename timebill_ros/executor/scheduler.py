# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Whose turn: earliest deadline first between units of work, several queries at once.

Pure: the clock is passed in. The rules, in the order of their weight:

1. *Promises.* An admitted GUARANTEED query meets its deadline while its length and the engine's
   times stay within their worst cases. Nothing is begun, stepped or admitted unless a certificate
   (``promises``) holds after it. A query that outgrows its worst-case length loses its promise.
2. *What has begun and still makes it is not made to miss*: a prefill waits, and a query stays out
   of a shared decode step, if one that decodes would likely miss because of it and would not
   without.
3. *Earliest deadline first* among the rest; who is not likely to make it, or gives way so that more
   others do (``overload``), comes after them, but for every eighth query that begins. A query that
   waits is not overtaken by a later deadline because it would harm somebody now.
4. *Prefill before decoding*, so that as many queries as possible share the steps.
5. *Work conservation*: as long as a query waits or runs the engine is not idle. So nobody starves:
   later arrivals have later deadlines, and the turn of every query comes, or its deadline does.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

from timebill_ros.executor.demand import Demand, Pace
from timebill_ros.executor.job import Act, infeasible, Job, missed_while_waiting, Turn
from timebill_ros.executor.overload import giving_way
from timebill_ros.executor.promises import (
    Certificate, deadline, NO_PROMISES, Promises, Way)
from timebill_ros.query import Ending, ErrorCode, NS_PER_S, Outcome
from timebill_ros.time_estimator.laws import Behind

# A shared step is repeated without a second thought for so long, if nothing happens meanwhile.
_REPEAT_NS = 10_000_000
# Every so many queries that begin the earliest deadline does, however unlikely it is to be met.
_FAIR_EVERY = 8
_FAR_NS = 100_000 * NS_PER_S


class Scheduler:
    """The queue in front of the engine, and its slots. Not thread-safe: the caller locks."""

    def __init__(self, pace: Pace, n_slots: int = 1,
                 has_room: Callable[['Job'], bool] = lambda job: True) -> None:
        """
        Start with an empty queue and an idle engine of ``n_slots``.

        ``has_room`` says whether the cache of a job would fit in memory beside those of the
        running ones.
        """
        self.pace = pace
        self.n_slots = n_slots
        self._has_room = has_room
        self._waiting: dict[str, Job] = {}
        self._running: dict[str, Job] = {}
        self._way = Way.IN_TURN
        self._begun = 0                     # queries so far
        self._busy_until_ns = 0             # worst case of what is being done
        self._under_way: Turn | None = None     # of a step that went ahead of its turn
        self._repeat: Turn | None = None
        self._repeat_until_ns = 0
        self._ahead_until_ns = 0
        self._lately = Behind(0)        # where the device is

    # --- the queue

    @property
    def n_waiting(self) -> int:
        """Queries that wait."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Queries whose work has begun."""
        return len(self._running)

    def submit(self, job: Job, now_ns: int) -> Ending | None:
        """Queue a job, or refuse it: the ending says why and what budget would do."""
        if now_ns >= job.query.plan_deadline_ns:
            return missed_while_waiting()
        refusal = self._refuse(job, now_ns)
        if refusal is None:
            self._waiting[job.query_id] = job
            self._repeat = None
        return refusal

    def drop(self, query_id: str) -> Job | None:
        """Forget a job that waits; one that runs only counts no more until ``finished``."""
        self._repeat = None
        job = self._running.get(query_id)
        if job is not None:
            job.dropped = True
        return self._waiting.pop(query_id, None)

    def drop_all(self) -> list[Job]:
        """Take every waiting job out."""
        jobs = list(self._waiting.values())
        self._waiting.clear()
        return jobs

    def take_lost(self, now_ns: int) -> list[tuple[Job, Ending]]:
        """
        Take out the jobs that waited too long, with their endings; they never start.

        A job is lost once its plan deadline has passed, a best-effort one already when prefill and
        one token no longer fit.
        """
        lost = []
        for job in list(self._waiting.values()):
            ending = (missed_while_waiting() if now_ns >= job.query.plan_deadline_ns
                      else self._hopeless(job, now_ns))
            if ending is not None:
                del self._waiting[job.query_id]
                lost.append((job, ending))
        if lost:
            self._repeat = None
        return lost

    # --- the engine

    def progressed(self, job: Job, demand: Demand) -> None:
        """Say what a running job still needs now."""
        job.demand = demand
        if not demand.decodes:
            self._repeat = None

    def finished(self, job: Job) -> None:
        """Say that a running job has ended and left its slot."""
        self._running.pop(job.query_id, None)
        job.running = False
        self._repeat = None

    def room_ns(self, job: Job, now_ns: int) -> tuple[int, int]:
        """Return the engine time left for a running job's plan, and the width to expect."""
        room_ns, width = self._promises().room_ns(job, now_ns)
        together = 1 if job.promised else sum(
            each is job or each.demand.decodes for each in self._running.values())
        return room_ns, max(width, together)

    def next_turn(self, now_ns: int) -> Turn | None:
        """
        Return what to do now; None = nobody waits or runs. Call ``take_lost`` first.

        It counts as being done from ``begin`` on.
        """
        turn = self._repeat if now_ns < self._repeat_until_ns else None
        return self._decide(now_ns) if turn is None else turn

    def begin(self, turn: Turn, now_ns: int) -> None:
        """Say that the turn that was chosen last begins now."""
        self._busy_until_ns = self.starts_ns(turn, now_ns) + turn.worst_ns
        if turn.act is Act.STEP:
            self._lately = self._lately._replace(done=self._lately.done + 1)
        else:
            self._lately = self.pace.lately(self._lately, turn.jobs[0].demand.behind)
        if turn.act is Act.BEGIN:
            job, = turn.jobs
            del self._waiting[job.query_id]
            self._running[job.query_id] = job
            job.running = True
            self._begun += 1

    def begin_again(self, turn: Turn, over: bool, now_ns: int) -> bool:
        """
        Begin the step of this turn again before the next turn, if it may; returns whether.

        The next turn will hardly be another one. If it is, the step was done in vain; what the
        promises leave has room for that, and the step counts as being done from now on. Before it
        is ``over`` its token may be the last: then only if that costs nobody else anything.
        """
        if not over and (self._waiting or len(turn.jobs) > 1):
            return False
        start_ns = max(now_ns, self._busy_until_ns)
        until_ns = start_ns + turn.worst_ns
        if (self._repeat is not turn or start_ns >= self._ahead_until_ns
                or any(job.query.stop_ns < until_ns for job in turn.jobs)):
            return False
        self._under_way, self._busy_until_ns = turn, until_ns
        return True

    def ended(self, ahead: bool, now_ns: int) -> None:
        """Say that a turn is over; ``ahead``: its step has indeed begun again."""
        if self._under_way is not None and ahead:
            self._busy_until_ns = min(self._busy_until_ns, now_ns + self._under_way.worst_ns)
        else:
            self._under_way, self._busy_until_ns = None, 0

    def is_under_way(self, turn: Turn) -> bool:
        """Tell whether the step of this turn went ahead of it."""
        other = self._under_way
        return other is not None and turn.act is Act.STEP and (
            turn is other or (turn.jobs, turn.tier) == (other.jobs, other.tier))

    def starts_ns(self, turn: Turn, now_ns: int) -> int:
        """Return when a turn can begin at the latest: after a step under way, if not its own."""
        if self._under_way is None or self.is_under_way(turn):
            return now_ns
        return max(now_ns, self._busy_until_ns)

    def _decide(self, now_ns: int) -> Turn | None:
        self._repeat = None
        promises = self._promises()
        for turn in self._wishes(now_ns):
            certificate = self._certificate(promises, turn, now_ns)
            if certificate.holds:
                self._way = certificate.way
                if turn.act is Act.STEP:
                    self._repeat = turn
                    self._ahead_until_ns = now_ns + certificate.slack_ns
                    self._repeat_until_ns = min(now_ns + _REPEAT_NS, self._ahead_until_ns)
                return turn
        return self._fall_back(promises)

    def _certificate(self, promises: Promises, turn: Turn, now_ns: int) -> Certificate:
        """Return what holds after a turn, should it take its worst case."""
        if not promises.kept:
            return NO_PROMISES
        ends_ns = self.starts_ns(turn, now_ns) + turn.worst_ns
        after = {job.query_id: job.demand.after_unit() for job in turn.jobs}
        if turn.act is not Act.BEGIN:
            return promises.check(ends_ns, after)
        job, = turn.jobs
        job.running = True      # as it would be then
        try:
            return self._promises().check(ends_ns, after)
        finally:
            job.running = False

    def _promises(self) -> Promises:
        n_slots = self.n_slots
        if any(job.promised and not self._has_room(job) for job in self._waiting.values()):
            n_slots = len(self._running)    # somebody has to leave first
        return Promises(
            [*self._waiting.values(), *self._running.values()], n_slots, self.pace,
            self._lately)

    # --- what would be best, if no promise forbids it

    def _wishes(self, now_ns: int) -> Iterator[Turn]:
        decoding = self._in_order(
            [job for job in self._running.values() if job.demand.decodes and not job.dropped],
            now_ns)
        blocked = False
        for job in self._in_order(self._ready_to_prefill(), now_ns):
            harms = self._harms(job, decoding, now_ns)
            if not harms and (job.running or job.promised or not blocked):
                yield self._unit_of(job)
            blocked = blocked or (harms and not job.running)
        if decoding:
            yield self._shared_step(decoding, now_ns)
            promised = [job for job in decoding if job.promised]
            if 0 < len(promised) < len(decoding):
                yield self._shared_step(promised, now_ns)

    def _ready_to_prefill(self) -> list[Job]:
        ready = [job for job in self._running.values()
                 if not job.demand.decodes and not job.dropped]
        free = self.n_slots - len(self._running)
        reserved = sum(job.promised for job in self._waiting.values())
        for job in self._waiting.values():
            if free > (0 if job.promised else reserved) and self._has_room(job):
                ready.append(job)
        return ready

    def _in_order(self, jobs: list[Job], now_ns: int) -> list[Job]:
        """Return the jobs by deadline, those likely to make it first."""
        if len(jobs) < 2:
            return jobs
        if self._begun % _FAIR_EVERY == _FAIR_EVERY - 1:
            return sorted(jobs, key=deadline)
        later = set[str]()
        if any(not job.running for job in jobs):
            everybody = [*self._waiting.values(), *self._running.values()]
            later = giving_way(everybody, self.n_slots, self.pace, now_ns)
        return sorted(jobs, key=lambda job: (
            job.query_id in later or not self._makes_it(job, now_ns, 1), deadline(job)))

    def _makes_it(self, job: Job, now_ns: int, width: int, tier: str = '') -> bool:
        likely_ns = self.pace.likely_ns(job.demand, tier or job.demand.tier, width)
        return now_ns + likely_ns <= job.query.due_ns

    def _harms(self, job: Job, decoding: list[Job], now_ns: int) -> bool:
        """Tell whether a decoding query likely misses if ``job`` is prefilled now, and joins."""
        width = len(decoding)
        later_ns = now_ns + round(job.demand.likely_before_s * NS_PER_S)
        return any(
            self._makes_it(each, now_ns, width) and not self._makes_it(each, later_ns, width + 1)
            for each in decoding)

    def _shared_step(self, decoding: list[Job], now_ns: int) -> Turn:
        """Return the step of as many as can share it without making one of them miss."""
        together: list[Job] = []
        for job in decoding:
            joined = [*together, job]
            tier = self._fastest(joined)
            if not together or (self._allowed(joined, tier) and not any(
                    self._makes_it(each, now_ns, len(together), tier)
                    and not self._makes_it(each, now_ns, len(joined), tier)
                    for each in joined)):
                together = joined
        return self._step_of(together)

    def _step_of(self, jobs: list[Job], tier: str = '') -> Turn:
        tier = tier or self._fastest(jobs)
        n_cached = sum(job.demand.n_cached for job in jobs) / len(jobs)
        return Turn(Act.STEP, tuple(jobs), tier, self.pace.step_ns(
            n_cached, tier, self._lately, [job.demand.behind for job in jobs]))

    def _unit_of(self, job: Job) -> Turn:
        if not job.running:
            return Turn(Act.BEGIN, (job,), '', round(job.demand.unit_s * NS_PER_S))
        if job.demand.decodes:
            return self._step_of([job])
        return Turn(Act.ADVANCE, (job,), '', round(job.demand.unit_s * NS_PER_S))

    def _fastest(self, jobs: list[Job]) -> str:
        tiers = self.pace.planning.estimator.tiers
        return max((job.demand.tier for job in jobs), key=lambda tier: _place(tiers, tier))

    def _allowed(self, jobs: list[Job], tier: str) -> bool:
        tiers = self.pace.planning.estimator.tiers
        return all(not job.query.min_tier
                   or _place(tiers, tier) <= _place(tiers, job.query.min_tier) for job in jobs)

    # --- what the promises say

    def _fall_back(self, promises: Promises) -> Turn | None:
        """Go on in the way for which a certificate held last."""
        if not promises.kept:
            return None
        if self._way is Way.TOGETHER:
            first = next((job for job in promises.kept if not job.demand.decodes), None)
            if first is None:
                return self._step_of(promises.kept, promises.shared_tier(promises.kept))
            if first.running or (len(self._running) < self.n_slots and self._has_room(first)):
                return self._unit_of(first)
        return self._unit_of(promises.first())

    def _refuse(self, job: Job, now_ns: int) -> Ending | None:
        if not job.promised:
            return self._hopeless(job, now_ns)
        start_ns = max(now_ns, self._busy_until_ns)
        promises = self._promises()
        if promises.check(start_ns, extra=job).holds:
            return None
        enough_ns = self._enough_ns(promises, job, start_ns)
        if enough_ns is None:
            return Ending(
                Outcome.INFEASIBLE, error_code=ErrorCode.BUDGET_TOO_SMALL,
                error_msg='no budget would do: what was promised to others leaves no room now')
        own_ns = self.pace.alone_ns(job.demand)
        return infeasible(job, waiting_ns=max(0, enough_ns - own_ns - job.query.arrival_ns))

    def _enough_ns(self, promises: Promises, job: Job, start_ns: int) -> int | None:
        """Return the earliest plan deadline that could be promised; None = none."""
        def holds(plan_deadline_ns: int) -> bool:
            query = replace(job.query, plan_deadline_ns=plan_deadline_ns)
            other = replace(job, query=query)
            return promises.check(start_ns, extra=other).holds

        low, step = job.query.plan_deadline_ns, NS_PER_S     # low does not hold
        while not holds(low + step):
            step *= 2
            if step > _FAR_NS:
                return None
        high = low + step
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        return high

    def _hopeless(self, job: Job, now_ns: int) -> Ending | None:
        """Return the ending of a best-effort query for which not even a token fits; else None."""
        least_ns = round(job.needs.least_s * NS_PER_S)
        if job.promised or now_ns + least_ns <= job.query.plan_deadline_ns:
            return None
        return infeasible(job, waiting_ns=now_ns - job.query.arrival_ns)


def _place(tiers: tuple[str, ...], tier: str) -> int:
    """Return how fast a tier is; one that is not measured counts as the first."""
    return tiers.index(tier) if tier in tiers else 0
