# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A query in the queue or in a slot, its next unit of work, and how it ends without any."""

from dataclasses import dataclass, field
from enum import Enum

from timebill_ros.budget.admission import Needs, refusal_message
from timebill_ros.executor.demand import Demand, demand_of_waiting
from timebill_ros.query import Admission, Ending, ErrorCode, NS_PER_S, Outcome, Query


@dataclass(eq=False)
class Job:
    """A query that waits for the engine or has a slot in it."""

    query: Query
    needs: Needs
    prompt_ids: list[int]
    cap: int                  # longest response, tokens
    tokenize_s: float = 0.0
    running: bool = False     # it has a slot
    planned: bool = False
    outgrown: bool = False    # its response is longer than the worst case it was admitted with
    dropped: bool = False     # the node has ended it
    demand: Demand = field(init=False)

    def __post_init__(self) -> None:
        """Start with what admission counted on."""
        self.demand = demand_of_waiting(self.needs, self.cap)

    @property
    def query_id(self) -> str:
        """The goal's id."""
        return self.query.query_id

    @property
    def promised(self) -> bool:
        """Tell whether it was admitted with a promise, and keeps to what that rests on."""
        return self.query.admission == Admission.GUARANTEED and not self.outgrown


class Act(Enum):
    """What is to be done."""

    BEGIN = 'begin'         # give the one job a slot, and do its first unit
    ADVANCE = 'advance'     # do the next unit of the one job
    STEP = 'step'           # one decode step of the jobs together


@dataclass(frozen=True)
class Turn:
    """The next unit of work."""

    act: Act
    jobs: tuple[Job, ...]
    tier: str               # of a decode step
    worst_ns: int


def missed_while_waiting() -> Ending:
    """Return the ending of a query whose deadline passed before its work began."""
    return Ending(
        Outcome.DEADLINE_MISSED, error_code=ErrorCode.DEADLINE_MISSED,
        error_msg='the deadline passed while the query waited for the engine')


def infeasible(job: Job, waiting_ns: int) -> Ending:
    """Return the ending of a query whose budget is too small, and which would do."""
    query = job.query
    message = refusal_message(
        job.needs, job.promised, waiting_s=(waiting_ns + query.waited_ns) / NS_PER_S,
        allowance_s=query.time_allowance_ns / NS_PER_S,
        margin_s=query.delivery_margin_ns / NS_PER_S)
    return Ending(Outcome.INFEASIBLE, error_code=ErrorCode.BUDGET_TOO_SMALL, error_msg=message)
