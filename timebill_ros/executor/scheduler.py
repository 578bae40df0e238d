# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Whose turn: earliest deadline first, with admission of guaranteed queries.

Pure: the clock is passed in.
One query runs at a time. A best-effort query never delays an admitted guaranteed one beyond its
deadline: it waits, however early its own deadline is, if starting it now would endanger one.
"""

from dataclasses import dataclass

from timebill_ros.budget.admission import Needs, refusal_message
from timebill_ros.query import Admission, Ending, ErrorCode, Outcome, Query

_NS = 1_000_000_000


@dataclass
class Job:
    """A query that waits for the engine."""

    query: Query
    needs: Needs
    prompt_ids: list[int]
    cap: int                  # longest response, tokens
    tokenize_s: float = 0.0

    @property
    def guaranteed(self) -> bool:
        """Tell whether it was admitted with a promise."""
        return self.query.admission == Admission.GUARANTEED


class Scheduler:
    """The queue in front of the engine. Not thread-safe: the caller locks."""

    def __init__(self) -> None:
        """Start with an empty queue and an idle engine."""
        self._waiting: dict[str, Job] = {}
        self._running: Job | None = None
        self._running_until_ns = 0

    @property
    def n_waiting(self) -> int:
        """Queries that wait."""
        return len(self._waiting)

    @property
    def n_running(self) -> int:
        """Queries whose work has begun."""
        return 0 if self._running is None else 1

    def submit(self, job: Job, now_ns: int) -> Ending | None:
        """Queue a job, or refuse it: the ending says why and what budget would do."""
        if now_ns >= job.query.plan_deadline_ns:
            return missed_while_waiting()
        refusal = self._refuse(job, now_ns)
        if refusal is None:
            self._waiting[job.query.query_id] = job
        return refusal

    def drop(self, query_id: str) -> Job | None:
        """Take a waiting job out; None = it does not wait."""
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
            ending = missed_while_waiting() if now_ns >= _deadline(job) else None
            if ending is None and not job.guaranteed:
                ending = self._refuse(job, now_ns)
            if ending is not None:
                del self._waiting[job.query.query_id]
                lost.append((job, ending))
        return lost

    def next_run(self, now_ns: int) -> Job | None:
        """
        Return the job whose turn it is and mark it as running; None = busy, or nobody waits.

        Call ``take_lost`` first; a job past its deadline is never returned.
        """
        ready = [job for job in self._waiting.values() if now_ns < job.query.plan_deadline_ns]
        if self._running is not None or not ready:
            return None
        job = self._choose(sorted(ready, key=_deadline), now_ns)
        del self._waiting[job.query.query_id]
        self._running = job
        self._running_until_ns = _latest_end(job, now_ns)
        return job

    def running_until(self, until_ns: int) -> None:
        """Say when the running query ends at the latest, as it is now predicted (steady clock)."""
        if self._running is not None:
            self._running_until_ns = min(until_ns, _killed_by(self._running))

    def stop_running(self, now_ns: int) -> None:
        """Say that the running query was dropped: it ends with its step or chunk."""
        if self._running is not None:
            self.running_until(now_ns + round(self._running.needs.unit_s * _NS))

    def finished(self) -> None:
        """Say that the running query has ended."""
        self._running = None

    def _choose(self, by_deadline: list[Job], now_ns: int) -> Job:
        first = by_deadline[0]
        promised = [job for job in by_deadline if job.guaranteed]
        if first.guaranteed or _all_fit(promised, _latest_end(first, now_ns)):
            return first
        return promised[0]

    def _refuse(self, job: Job, now_ns: int) -> Ending | None:
        if job.guaranteed:
            begin_ns = now_ns if self._running is None else max(now_ns, self._running_until_ns)
            promised = [each for each in self._waiting.values() if each.guaranteed]
            needed_ns = _earliest_promise(job, sorted(promised, key=_deadline), begin_ns)
            own_ns = _worst_ns(job)
        else:
            own_ns = round(job.needs.least_s * _NS)
            needed_ns = now_ns + own_ns
        query = job.query
        if needed_ns <= query.plan_deadline_ns:
            return None
        message = refusal_message(
            job.needs, job.guaranteed, waiting_s=(needed_ns - own_ns - query.arrival_ns) / _NS,
            allowance_s=(query.deadline_ns - query.arrival_ns) / _NS,
            margin_s=(query.deadline_ns - query.plan_deadline_ns) / _NS)
        return Ending(Outcome.INFEASIBLE, error_code=ErrorCode.BUDGET_TOO_SMALL, error_msg=message)


def missed_while_waiting() -> Ending:
    """Return the ending of a query whose deadline passed before its work began."""
    return Ending(
        Outcome.DEADLINE_MISSED, error_code=ErrorCode.DEADLINE_MISSED,
        error_msg='the deadline passed while the query waited for the engine')


def _deadline(job: Job) -> int:
    return job.query.plan_deadline_ns


def _worst_ns(job: Job) -> int:
    return round(job.needs.worst_s * _NS)


def _latest_end(job: Job, begin_ns: int) -> int:
    """When a job that begins at ``begin_ns`` ends at the latest: done, or killed."""
    return min(begin_ns + _worst_ns(job), _killed_by(job))


def _killed_by(job: Job) -> int:
    """When a job killed at its deadline leaves the engine: its last step or chunk ends first."""
    return job.query.plan_deadline_ns + round(job.needs.unit_s * _NS)


def _all_fit(promised: list[Job], begin_ns: int) -> bool:
    """Tell whether the promised jobs, in a row from ``begin_ns`` on, all meet their deadlines."""
    end_ns = begin_ns
    for job in promised:
        end_ns += _worst_ns(job)
        if end_ns > job.query.plan_deadline_ns:
            return False
    return True


def _earliest_promise(job: Job, promised: list[Job], begin_ns: int) -> int:
    """
    Return the earliest plan deadline that could be promised to ``job`` beside ``promised``.

    Tries each place in the queue, the first in front of all: there it ends after what goes before,
    must not push what comes after beyond its deadline, and needs a deadline not before the one in
    front of it.
    """
    def end_ns(place: int) -> int:
        return begin_ns + sum(_worst_ns(each) for each in promised[:place]) + _worst_ns(job)

    place = next(i for i in range(len(promised) + 1) if _all_fit(promised[i:], end_ns(i)))
    return max([end_ns(place)] + [_deadline(each) for each in promised[:place][-1:]])
