# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Takes goals and ends each of them once: by engine, deadline, cancel or the engine's loss.

All of it runs in the one thread that spins the node.
"""

from collections.abc import Callable
import time
from typing import Any

from timebill_ros.action import Query as QueryAction
from timebill_ros.executor.handover import Handover
from timebill_ros.executor.messages import Drop, Finished, ModelInfo, Planned, Progress, Submit
from timebill_ros.executor.supervisor import EngineLost
from timebill_ros.msg import QueryTiming as QueryTimingMsg
from timebill_ros.nodes import conversions
from timebill_ros.nodes.goal_record import GoalBook, GoalRecord
from timebill_ros.nodes.parameters import ADMISSIONS, OVERRUNS, ServerParameters
from timebill_ros.nodes.validation import InvalidGoal, resolve, ServerDefaults
from timebill_ros.query import Ending, ErrorCode, Outcome, Query


class GoalDesk:
    """The life of every goal between the action server and the engine process."""

    def __init__(
        self,
        parameters: ServerParameters,
        send: Callable[[int, Any], None],
        arm_deadline: Callable[[int | None], None],
        handed_over: Callable[[GoalRecord], None],
        publish_timing: Callable[[QueryTimingMsg], None],
    ) -> None:
        """
        Open the desk, for an engine that is not ready.

        ``send(generation, message)`` reaches the engine; ``arm_deadline(steady_ns)`` has
        ``end_due`` called then;
        ``handed_over(record)`` hears of every result at the moment it is built, and must call
        ``close`` later.
        """
        self.parameters = parameters
        self.book = GoalBook()
        self.handing_over = 0  # goals that have ended but whose result is not out
        self.handover = Handover()
        self.closed_because = ''  # why new goals fail although the engine is ready; '' = open
        self._send = send
        self._arm_deadline = arm_deadline
        self._handed_over = handed_over
        self._publish_timing = publish_timing
        self._model: ModelInfo | None = None
        self._generation = 0  # engine process that is ready; 0 = none is
        self._not_ready_because = 'it starts'

    def engine_ready(self, generation: int, model: ModelInfo) -> None:
        """Send queries to this engine process from now on."""
        self._generation = generation
        self._model = model

    def engine_lost(self, event: EngineLost) -> None:
        """End the queries of an engine process that is gone; until another is ready all fail."""
        self._generation = 0
        self._not_ready_because = event.error_msg
        for record in self.book.all():
            if record.engine_has_it and record.generation <= event.generation:
                record.engine_has_it = False
                self.end(
                    record,
                    Ending(Outcome.FAILED, error_code=event.error_code, error_msg=event.error_msg),
                )
                self.close(record)

    def accept(self, handle: Any, arrival_ns: int) -> None:
        """Begin a goal: pass it to the engine, or end it at once."""
        record = GoalRecord(query_id_of(handle), handle, arrival_ns, bool(handle.request.stream))
        try:
            record.query = resolve(
                handle.request,
                record.query_id,
                arrival_ns,
                conversions.system_ns(arrival_ns),
                self._defaults(),
            )
        except InvalidGoal as error:
            self.book.add(record)
            self.end(
                record, Ending(Outcome.INVALID, error_code=error.error_code, error_msg=str(error))
            )
            return
        refusal = self._refusal(record, record.query)
        self.book.add(record)
        if refusal is not None:
            self.end(record, refusal)
            return
        record.generation = self._generation
        record.engine_has_it = True
        record.query.handover_ns = self.handover.margin_ns
        self._send(record.generation, Submit(record.query))
        self._rearm()

    def cancel(self, handle: Any) -> None:
        """End a goal because its client asks; one that has ended a moment ago keeps its ending."""
        record = self.book.find(query_id_of(handle))
        if record is not None:
            self.end(
                record,
                Ending(
                    Outcome.CANCELED,
                    error_code=ErrorCode.CANCELED_BY_CLIENT,
                    error_msg='the client canceled the query',
                ),
            )

    def end_due(self) -> None:
        """End the goals whose time is up, whatever the engine does; late ones say so and go on."""
        now_ns = time.monotonic_ns()
        for record in self.book.open():
            if record.due_ns is None or record.due_ns > now_ns:
                continue
            if record.may_run_late and not record.is_late:
                record.run_late()
                self._feed_back(record, changed=True)
            else:
                self.end(record, record.missed())
        self._rearm()

    def end_all(self, ending: Ending) -> None:
        """End every open goal."""
        for record in self.book.open():
            self.end(record, ending)

    def end(self, record: GoalRecord, ending: Ending) -> None:
        """End a goal that is open; its result goes out in the executor's next turn."""
        if not record.is_open:
            return
        record.ending = ending
        self.handing_over += 1
        if record.engine_has_it:
            self._send(record.generation, Drop(record.query_id))
        record.handle.execute()
        self._rearm()

    def hand_over(self, handle: Any) -> QueryAction.Result:
        """Set the goal's final state and return its result (execute callback of rclpy)."""
        self.handing_over -= 1
        record = self.book.find(query_id_of(handle))
        assert record is not None
        ending = record.hand_over(time.monotonic_ns())
        if record.engine_ended_ns:
            self.handover.measured(record.ended_ns - record.engine_ended_ns)
        result = conversions.result_msg(
            ending, record.text, record.ended_ns - record.arrival_ns, self._timing_msg(record)
        )
        if ending.outcome in (Outcome.COMPLETED, Outcome.TRUNCATED):
            handle.succeed()
        elif ending.outcome == Outcome.CANCELED:
            handle.canceled()
        else:
            handle.abort()
        self._handed_over(record)
        return result

    def engine_said(self, generation: int, message: Progress | Planned | Finished) -> None:
        """Take in what the engine says about a query."""
        record = self.book.find(message.query_id)
        if record is None or record.generation != generation:
            return
        if isinstance(message, Planned):
            record.planned(message)
        elif isinstance(message, Finished):
            if record.is_open and record.stream and record.unsent_text:
                self._feed_back(record, changed=True)
            if record.overtook(message):
                self.handover.measured(time.monotonic_ns() - message.sent_ns)
            record.finished(message)
            self.end(record, message.ending)
            self.close(record)
        elif record.is_open:
            changed = record.progress(message)
            self._feed_back(record, changed)

    def close(self, record: GoalRecord) -> None:
        """Publish the timing of a goal once its result is out and the engine has done with it."""
        if (
            record.ended_ns
            and not record.engine_has_it
            and self.book.find(record.query_id) is record
        ):
            self.book.forget(record)
            self._publish_timing(self._timing_msg(record))

    def _refusal(self, record: GoalRecord, query: Query) -> Ending | None:
        """Return how a valid goal ends at once; None if it is taken."""
        if time.monotonic_ns() >= query.plan_deadline_ns:
            return record.missed()
        if not self._generation or self.closed_because:
            why = self.closed_because if self._generation else self._not_ready_because
            return Ending(
                Outcome.FAILED,
                error_code=ErrorCode.ENGINE_NOT_READY,
                error_msg=f'the engine is not ready: {why}',
            )
        if self.book.late() is not None:
            return _skipped(
                ErrorCode.LATE_JOB_RUNNING,
                'a query that missed its deadline still runs (SKIP_NEXT)',
            )
        limit = self.parameters.max_queue_per_client
        if limit and self.book.of_client(query.client_id) >= limit:
            return _skipped(
                ErrorCode.QUEUE_FULL,
                f'max_queue_per_client = {limit} queries of client_id = "{query.client_id}" '
                'wait or run already',
            )
        if self.book.is_full(self.parameters.max_queue):
            return _skipped(
                ErrorCode.QUEUE_FULL,
                f'max_queue = {self.parameters.max_queue} queries wait already',
            )
        return None

    def _defaults(self) -> ServerDefaults:
        values, model = self.parameters, self._model
        assert model is not None  # there is no action server before the engine was ready once
        return ServerDefaults(
            n_max=model.n_max,
            max_context=model.max_context,
            max_prompt_bytes=values.max_prompt_bytes,
            admission=ADMISSIONS[values.default_admission],
            overrun=OVERRUNS[values.default_overrun],
            alpha_max=values.alpha_max,
            delivery_margin_s=values.delivery_margin_s,
            max_overrun_s=values.max_overrun_s,
            max_clock_skew_s=values.max_clock_skew_s,
            tiers=tuple(model.tiers),
            sampling=model.sampling,
        )

    def _feed_back(self, record: GoalRecord, changed: bool) -> None:
        now_ns = time.monotonic_ns()
        streams = record.stream and bool(record.unsent_text)
        period_s = (
            self.parameters.stream_period_s if streams else self.parameters.feedback_period_s
        )
        due_ns = record.last_feedback_ns + round(period_s * conversions.NS_PER_S)
        if not changed and now_ns < due_ns:
            return
        assert record.query is not None
        left_ns = record.predicted_finish_ns - now_ns if record.predicted_finish_ns else 0
        record.handle.publish_feedback(
            conversions.feedback_msg(
                record.stage,
                record.unsent_text if record.stream else '',
                record.n_generated,
                record.query.deadline_ns - now_ns,
                max(0, left_ns),
                record.deadline_at_risk,
                record.is_late,
            )
        )
        record.unsent_text = ''
        record.last_feedback_ns = now_ns

    def _timing_msg(self, record: GoalRecord) -> QueryTimingMsg:
        assert record.ending is not None
        model = self._model
        return conversions.timing_msg(
            record.final_timing(),
            record.ending,
            conversions.Identity(
                goal_id=record.handle.goal_id,
                arrived_system_ns=conversions.system_ns(record.arrival_ns),
                ended_system_ns=conversions.system_ns(record.ended_ns),
                model='' if model is None else model.name,
                device='' if model is None else model.device,
            ),
        )

    def _rearm(self) -> None:
        self._arm_deadline(self.book.next_due_ns())


def _skipped(code: ErrorCode, why: str) -> Ending:
    return Ending(Outcome.SKIPPED, error_code=code, error_msg=why)


def query_id_of(handle: Any) -> str:
    """Return the hexadecimal goal id of a goal handle."""
    return bytes(handle.goal_id.uuid.tolist()).hex()
