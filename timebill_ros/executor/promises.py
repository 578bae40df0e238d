# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Certificates: proofs that every promise made is kept, whatever arrives later.

A *promise* is an admitted GUARANTEED query. Two ways of working keep all of them, each under a
condition that can be checked with the worst cases of what is left, and that goes on to hold while
one works that way:

``in turn``   One query after the other, by deadline (preemptive EDF). Holds if every prefix of
              that order ends in time. A query without a slot waits for the holder of one that is
              cheapest to finish, and that one's work comes before its own (priority inheritance).
``together``  All prefills, by deadline; then decode steps that all share. Holds if each query has
              a slot, and ends in time when all that precedes decoding comes before its steps, each
              as slow as a step of all of them with the longest cache among them.

Anything else (a best-effort unit, a shared step, another admission) is done only if a certificate
holds after its worst case, so there always is one to fall back on. Worst cases are of *runs* of
work: a certificate bounds what is really left from the moment at which it was checked, and need
not be checked again while one works its way.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, reduce
from typing import TYPE_CHECKING

from timebill_ros.executor.demand import Demand, Pace
from timebill_ros.query import NS_PER_S
from timebill_ros.time_estimator.laws import Behind

if TYPE_CHECKING:
    from timebill_ros.executor.job import Job


class Way(Enum):
    """A way of working that keeps all promises."""

    IN_TURN = 'in turn'
    TOGETHER = 'together'


@dataclass(frozen=True)
class Certificate:
    """The slack of the promise that is nearest to being broken; below 0 it is none."""

    slack_ns: int
    way: Way

    @property
    def holds(self) -> bool:
        """Tell whether all promises are kept this way."""
        return self.slack_ns >= 0


NO_PROMISES = Certificate(1 << 62, Way.IN_TURN)


def deadline(job: 'Job') -> tuple[int, int]:
    """Return what jobs are ordered by: when they are due, then arrival."""
    return job.query.due_ns, job.query.arrival_ns


class Promises:
    """What was promised, as it stands at one moment; ``jobs`` are all that wait or run."""

    def __init__(self, jobs: Iterable['Job'], n_slots: int, pace: Pace,
                 lately: Behind = Behind(0)) -> None:
        """
        Sort them; the demands are those the jobs have now.

        ``lately``: where the device is behind the longest prompt that it met.
        """
        self._pace, self._lately = pace, lately
        present = [job for job in jobs if not job.dropped]
        self.kept = sorted((job for job in present if job.promised), key=deadline)
        self._running = [job for job in present if job.running]
        self._free = n_slots - len(self._running)

    def check(self, start_ns: int, after: Mapping[str, Demand] | None = None,
              extra: 'Job | None' = None) -> Certificate:
        """
        Return the better certificate for working from ``start_ns`` on.

        ``after`` has the demands, by query, that differ then; ``extra`` is a query more, that has
        no slot.
        """
        kept = self.kept if extra is None else sorted([*self.kept, extra], key=deadline)
        if not kept:
            return NO_PROMISES
        demands = {**{job.query_id: job.demand for job in kept}, **(after or {})}
        prompts = (each.behind for each in (after or {}).values() if not each.decodes)
        lately = reduce(self._pace.lately, prompts, self._lately)
        in_turn = self._in_turn(kept, demands, start_ns, lately)
        together = self._together(kept, demands, start_ns, lately)
        return max(in_turn, together, key=lambda each: each.slack_ns)

    def first(self) -> 'Job':
        """Return the query whose turn it is when working in turn."""
        head = self.kept[0]
        if head.running or self._free > 0:
            return head
        return self._holder(head, set()) or head

    def shared_tier(self, kept: Sequence['Job']) -> str:
        """
        Return the tier of steps that all share when working together: the fastest all allow.

        Not that of a plan: a plan made, or relaxed, later would slow down the others' steps.
        """
        tiers = self._pace.planning.estimator.tiers
        return min((job.needs.cheapest.tier for job in kept), key=lambda name: _index(tiers, name))

    def room_ns(self, job: 'Job', now_ns: int) -> tuple[int, int]:
        """
        Return the engine time that the promises leave ``job``, and the width of the decode steps.

        With a plan whose worst case takes no longer a certificate goes on to hold.
        """
        kept, own_ns = self.kept, job.query.due_ns - now_ns
        demands = {each.query_id: each.demand for each in kept}
        if job in kept and self._together(kept, demands, now_ns, self._lately).holds:
            width, mine = len(kept), job.demand
            own_ns -= sum(round(each.demand.before_s * NS_PER_S)
                          for each in kept if each is not job)
            # its plan counts on its own cache, the steps read those of the others as well
            own_ns -= (self._pace.steps_ns(mine, _longest(kept, demands), mine.tier, width)
                       - self._pace.steps_ns(mine, mine.n_cached, mine.tier, width))
            return own_ns, width
        nothing = Demand(0.0, 0.0, 0.0, 0, 0, 0, job.demand.tier)
        # what its own prompt did to the device its plan pays for, if nobody comes behind it
        own = self._lately.n_prompt == job.demand.behind.n_prompt and kept[-1:] == [job]
        later = self._in_turn(
            kept, {**demands, job.query_id: nothing}, now_ns, Behind(0) if own else self._lately,
            job)
        if job not in kept:
            own_ns -= sum(round(each.demand.before_s * NS_PER_S)
                          for each in kept if deadline(each) < deadline(job))
        return min(own_ns, later.slack_ns), 1

    @cached_property
    def _holders(self) -> list['Job']:
        """Who has a slot, by how soon it would be free."""
        return sorted(
            self._running, key=lambda job: self._until_free_ns(job, job.demand, 0))

    # --- the two ways

    def _in_turn(self, kept: Sequence['Job'], demands: Mapping[str, Demand], start_ns: int,
                 lately: Behind, since: 'Job | None' = None) -> Certificate:
        """
        Check EDF; with ``since`` only the slack of that job and those after its work counts.

        What the first takes longer because of its own prompt counts with its work.
        """
        slack_ns, end_ns, free = 1 << 62, start_ns, self._free
        if kept:
            first = demands[kept[0].query_id]
            met_ns = self._pace.recovery_ns(lately)
            if lately.n_prompt == first.behind.n_prompt:
                met_ns = max(0, met_ns - self._pace.own_recovery_ns(first))
            end_ns += met_ns
        done: set[str] = set()
        counts = False
        for job in kept:
            if not job.running and free < 1:
                holder = self._holder(job, done)
                if holder is None:
                    return Certificate(-(1 << 62), Way.IN_TURN)
                demand = demands.get(holder.query_id, holder.demand)
                end_ns += self._until_free_ns(holder, demand, end_ns)
                done.add(holder.query_id)
                free += 1
            if job.query_id not in done:
                end_ns += self._pace.alone_ns(demands[job.query_id])
                free += job.running
                done.add(job.query_id)
            counts = counts or since is None or since.query_id in done
            if counts:
                slack_ns = min(slack_ns, job.query.due_ns - end_ns)
        return Certificate(slack_ns, Way.IN_TURN)

    def _together(self, kept: Sequence['Job'], demands: Mapping[str, Demand],
                  start_ns: int, lately: Behind) -> Certificate:
        waiting = sum(not job.running for job in kept)
        if waiting > self._free or len(kept) < 2:
            return Certificate(-(1 << 62), Way.TOGETHER)
        mine = [demands[job.query_id] for job in kept]
        tier = self.shared_tier(kept)
        start_ns += round(sum(each.before_s for each in mine) * NS_PER_S)
        own = max((each.behind for each in mine), key=self._pace.recovery_ns)
        start_ns += self._pace.recovery_ns(own)
        if lately.n_prompt != own.n_prompt:
            start_ns += self._pace.recovery_ns(lately)
        n_cached = _longest(kept, demands)
        slack_ns = min(
            job.query.due_ns - start_ns
            - self._pace.steps_ns(each, n_cached, tier, len(kept))
            for job, each in zip(kept, mine))
        return Certificate(slack_ns, Way.TOGETHER)

    def _holder(self, job: 'Job', done: set[str]) -> 'Job | None':
        """Return the query in a slot whose end frees one soonest for ``job``."""
        for holder in self._holders:
            if holder.query_id in done or (holder.promised and deadline(holder) < deadline(job)):
                continue
            return holder
        return None

    def _until_free_ns(self, holder: 'Job', demand: Demand, from_ns: int) -> int:
        """Return the most work that ``holder`` needs until it leaves its slot: done or stopped."""
        if holder.dropped:
            return 0
        # nothing was promised of its length, and its plan may change
        work_ns = self._pace.at_most_ns(demand, _most_cached(holder, demand))
        if not from_ns:
            return work_ns
        stop_ns = holder.query.stop_ns + round(holder.needs.unit_s * NS_PER_S)
        return max(0, min(work_ns, stop_ns - from_ns))


def _longest(kept: Sequence['Job'], demands: Mapping[str, Demand]) -> int:
    """Return the tokens in the longest cache."""
    return max(_most_cached(job, demands[job.query_id]) for job in kept)


def _most_cached(job: 'Job', demand: Demand) -> int:
    """Return the tokens in its cache; a prompt without a plan may stay as it is."""
    return demand.n_cached if job.planned else job.needs.n_prompt


def _index(tiers: Sequence[str], name: str) -> int:
    """Return how fast a tier is; one that is not measured counts as the first."""
    return tiers.index(name) if name in tiers else 0
