# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the node knows about each goal, and the book that holds them; no ROS."""

from dataclasses import dataclass, field
from math import nan
from typing import Any

from timebill_ros.executor.messages import Finished, Planned, Progress
from timebill_ros.query import Ending, ErrorCode, NS_PER_S, Outcome, Query, QueryTiming, Stage


@dataclass
class GoalRecord:
    """One goal from its arrival to its last word. Times are nanoseconds of the steady clock."""

    query_id: str
    handle: Any  # the action server's goal handle
    arrival_ns: int
    stream: bool
    query: Query | None = None  # None: the goal was never valid
    generation: int = 0  # engine process that works on it; 0 = none was asked
    stage: Stage = Stage.QUEUED
    text: str = ''
    unsent_text: str = ''  # not yet in a feedback message
    n_generated: int = 0
    predicted_finish_ns: int = 0
    deadline_at_risk: bool = False
    last_feedback_ns: int = 0
    last_token_ns: int = 0
    timing: QueryTiming = field(default_factory=QueryTiming)
    is_late: bool = False  # it runs on after its plan deadline (SKIP_NEXT)
    engine_has_it: bool = False  # the engine has not yet said its last word on it
    ending: Ending | None = None
    ended_ns: int = 0  # when its result was handed over; 0 = not yet
    engine_ended_ns: int = 0  # when the engine ended it; 0 = somebody else did, or nobody yet

    @property
    def is_open(self) -> bool:
        """Nothing has ended it yet."""
        return self.ending is None

    def progress(self, message: Progress) -> bool:
        """Take in what the engine reports; True if stage or risk changed."""
        stage = Stage.LATE if self.is_late else message.stage
        changed = self.stage != stage or self.deadline_at_risk != message.deadline_at_risk
        self.stage = stage
        self.text += message.text
        self.unsent_text += message.text
        self.n_generated = message.n_generated
        self.predicted_finish_ns = message.predicted_finish_ns
        self.deadline_at_risk = message.deadline_at_risk
        if message.n_generated:
            self.last_token_ns = message.sent_ns
        return changed

    @property
    def may_run_late(self) -> bool:
        """It is to run on beyond its deadline: its work has begun, and its strategy says so."""
        return self.query is not None and self.query.overrun_ns > 0 and self.stage != Stage.QUEUED

    @property
    def due_ns(self) -> int | None:
        """When something has to happen whatever the engine does; None = never."""
        if self.query is None:
            return None
        return self.query.stop_ns if self.is_late else self.query.plan_deadline_ns

    def run_late(self) -> None:
        """Note that its deadline has passed and that it goes on."""
        self.is_late = True
        self.stage = Stage.LATE

    def planned(self, message: Planned) -> None:
        """Take in the timing record so far."""
        self.timing = message.timing

    def overtook(self, message: Finished) -> bool:
        """Tell whether its time was up while the engine's word that it had ended was on its way."""
        return (
            self.query is not None
            and self.ending is not None
            and self.ending.outcome == Outcome.DEADLINE_MISSED
            and 0 < message.sent_ns < self.query.plan_deadline_ns
        )

    def finished(self, message: Finished) -> None:
        """Take in the engine's last word; once the goal has ended only the measurements count."""
        self.engine_has_it = False
        self.timing = message.timing
        if self.is_open:
            self.text = message.text
            self.last_token_ns = message.last_token_ns
            self.engine_ended_ns = message.sent_ns

    def hand_over(self, now_ns: int) -> Ending:
        """
        Return the ending that the client is told now, and close the record.

        The one place that keeps the promise: from the plan deadline on it is DEADLINE_MISSED,
        whatever happened.
        """
        assert self.ending is not None
        query = self.query
        if (
            query is not None
            and now_ns >= query.plan_deadline_ns
            and self.ending.outcome != Outcome.DEADLINE_MISSED
        ):
            self.ending = self.missed()
        self.ended_ns = now_ns
        return self.ending

    def missed(self) -> Ending:
        """Return the ending of a query whose time is up; the message says how far it got."""
        assert self.query is not None
        budget_s = self.query.time_allowance_ns / NS_PER_S
        margin_s = self.query.delivery_margin_ns / NS_PER_S
        where = {Stage.QUEUED: 'waiting for the engine', Stage.PREFILL: 'reading the prompt'}.get(
            self.stage, f'{self.n_generated} tokens into the response'
        )
        overrun_s = self.query.overrun_ns / NS_PER_S
        also = f' and max_overrun_s = {overrun_s:g} s' if self.is_late else ''
        return Ending(
            Outcome.DEADLINE_MISSED,
            error_code=ErrorCode.DEADLINE_MISSED,
            error_msg=f'time_allowance = {budget_s:g} s (less delivery_margin_s = {margin_s:g} s)'
            f'{also} ran out {where}',
        )

    def final_timing(self) -> QueryTiming:
        """Return the timing record with what only the node knows, once it was handed over."""
        timing = self.timing
        timing.total = (self.ended_ns - self.arrival_ns) / NS_PER_S
        timing.deadline_at_risk = timing.deadline_at_risk or self.deadline_at_risk
        timing.n_generated = max(timing.n_generated, self.n_generated)
        timing.last_token_to_result = (
            (self.ended_ns - self.last_token_ns) / NS_PER_S if self.last_token_ns else nan
        )
        if self.query is not None:
            timing.time_allowance = self.query.time_allowance_ns / NS_PER_S
            timing.delivery_margin = self.query.delivery_margin_ns / NS_PER_S
            timing.slack = (self.query.deadline_ns - self.ended_ns) / NS_PER_S
            timing.n_cap = timing.n_cap or self.query.max_new_tokens
        return timing


class GoalBook:
    """Every goal that still matters: open, or owed a last word by the engine."""

    def __init__(self) -> None:
        """Start empty."""
        self._records: dict[str, GoalRecord] = {}

    def add(self, record: GoalRecord) -> None:
        """Take a record in."""
        self._records[record.query_id] = record

    def find(self, query_id: str) -> GoalRecord | None:
        """Return the record of a goal; None if it is over."""
        return self._records.get(query_id)

    def forget(self, record: GoalRecord) -> None:
        """Drop a record whose last word is said."""
        self._records.pop(record.query_id, None)

    def open(self) -> list[GoalRecord]:
        """Return the goals that nothing has ended yet, oldest first."""
        return [record for record in self._records.values() if record.is_open]

    def all(self) -> list[GoalRecord]:
        """Return every record, oldest first."""
        return list(self._records.values())

    def running(self) -> int:
        """Return how many open goals the engine has begun."""
        return sum(record.stage != Stage.QUEUED for record in self.open())

    def waiting(self) -> int:
        """Return how many open goals wait beside the one that the engine works on or begins."""
        return max(0, len(self.open()) - max(1, self.running()))

    def is_full(self, max_queue: int) -> bool:
        """Return whether one more goal would be one too many to wait."""
        return len(self.open()) >= max_queue + max(1, self.running())

    def of_client(self, client_id: str) -> int:
        """Return how many open goals a client has."""
        return sum(
            record.query is not None and record.query.client_id == client_id
            for record in self.open()
        )

    def late(self) -> GoalRecord | None:
        """Return a goal that runs on after its deadline; None if there is none."""
        return next((record for record in self.open() if record.is_late), None)

    def next_due_ns(self) -> int | None:
        """Return the next moment at which something has to happen to a goal; None if none is."""
        due = [record.due_ns for record in self.open()]
        return min((moment for moment in due if moment is not None), default=None)
