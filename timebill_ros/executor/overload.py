# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Who gives way where not all can be whole in time: pure.

By deadline alone everybody waits equally long and then most are late by a little. Moore and Hodgson
(1968) let as many as possible be in time: go through the queries by deadline, and whenever one
would be late, take out the most expensive one so far. That is exact for one machine and known
work; here what decode steps cost is shared, lengths are predicted, and later arrivals unknown.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from timebill_ros.executor.demand import Pace
from timebill_ros.executor.promises import deadline
from timebill_ros.query import NS_PER_S

if TYPE_CHECKING:
    from timebill_ros.executor.job import Job


def giving_way(jobs: Iterable['Job'], n_slots: int, pace: Pace, now_ns: int) -> set[str]:
    """
    Return the ids of those that let others go first: who is late anyway, and who costs too much.

    Nobody who was promised anything, or has begun, does. ``jobs`` are all that wait or run.
    """
    present = sorted((job for job in jobs if not job.dropped), key=deadline)
    width = max(1, min(n_slots, len(present)))
    ends_ns, gone = now_ns, set[str]()
    may_go: list[tuple[int, str]] = []      # costs, and whose
    for job in present:
        demand = job.demand
        likely_ns = pace.likely_ns(demand, demand.tier, width)
        alone_ns = round(demand.likely_before_s * NS_PER_S)
        cost_ns = alone_ns + (likely_ns - alone_ns) // width
        stays = job.running or job.promised
        if now_ns + likely_ns > job.query.due_ns:
            gone |= set() if stays else {job.query_id}
            continue
        ends_ns += cost_ns
        if not stays:
            may_go.append((cost_ns, job.query_id))
        if ends_ns > job.query.due_ns and may_go:
            most = max(may_go)
            may_go.remove(most)
            ends_ns -= most[0]
            gone.add(most[1])
    return gone
