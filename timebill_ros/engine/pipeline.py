# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""One query's way through the engine: prefill in chunks, plan, evict, decode step by step."""

from collections.abc import Callable
import logging
from math import nan
import time
from typing import TYPE_CHECKING, Union

from timebill_ros.budget.forecast import rest_in_decode_s, rest_in_prefill_s
from timebill_ros.budget.planner import Plan, plan, PlanInputs, Planning
from timebill_ros.engine.errors import OutOfMemory
from timebill_ros.engine.timing_record import TimingRecord
from timebill_ros.executor.messages import Finished, Planned, Progress
from timebill_ros.query import Ending, ErrorCode, FinishReason, Outcome, Query, QueryTiming, Stage

if TYPE_CHECKING:
    from timebill_ros.engine.engine import Engine
    from timebill_ros.engine.sequence import Sequence

Message = Union[Progress, Planned, Finished]
_NS = 1_000_000_000
_LOG = logging.getLogger(__name__)


class QueryRun:
    """
    A query that has the engine, as a state machine.

    ``advance`` does one unit of work (a prefill chunk, with the last of them the plan and the
    first token; the eviction; a decode step) and returns what to send. The steady clock is looked
    at before and after each; at the plan deadline the query ends with the text so far.
    """

    def __init__(
            self, engine: 'Engine', query: Query, prompt_ids: list[int], cap: int,
            planning: Planning, tokenize_s: float = nan,
            clock: Callable[[], int] = time.monotonic_ns) -> None:
        """
        Prepare a query whose turn it is; the first ``advance`` begins the work.

        ``cap`` is the longest response in tokens (at least 1): the client's or the server's, or
        what the context leaves room for.
        """
        self.done = False
        self.latest_end_ns = query.plan_deadline_ns    # as predicted, worst case
        self._engine = engine
        self._query = query
        self._prompt_ids = prompt_ids
        self._cap = cap
        self._planning = planning
        self._clock = clock
        self._record = TimingRecord(query, len(prompt_ids), cap, tokenize_s, planning)
        self._evict_next = False
        self._sequence: Sequence | None = None
        self._text = engine.response_text(query.stop)
        self._plan: Plan | None = None
        self._prefill_began_ns = 0
        self._last_token_ns = 0
        self._dropped = False

    @property
    def query_id(self) -> str:
        """The goal's id."""
        return self._query.query_id

    @property
    def timing(self) -> QueryTiming:
        """The record so far."""
        return self._record.timing

    def drop(self) -> None:
        """Have the next ``advance`` give the engine back: the node has ended this query."""
        self._dropped = True

    def advance(self) -> list[Message]:
        """Do one unit of work and return what to send to the node; an error ends the query."""
        try:
            if self._dropped:
                return [self._end(Ending(
                    Outcome.CANCELED, error_code=ErrorCode.CANCELED_BY_CLIENT,
                    error_msg='the node ended the query'))]
            return self._missed() or self._work() + self._missed()
        except OutOfMemory as error:
            return [self._failed(ErrorCode.OUT_OF_MEMORY, error)]
        except Exception as error:      # one query's failure must not end the engine
            _LOG.exception('query %s failed', self.query_id)
            return [self._failed(ErrorCode.ENGINE_ERROR, error)]

    def abort(self, ending: Ending) -> Finished:
        """End the query from outside, as ``ending`` says."""
        return self._end(ending)

    def _work(self) -> list[Message]:
        if self._sequence is None:
            return self._open()
        if self._plan is None:
            return self._prefill_chunk(self._sequence)
        return self._evict(self._plan) if self._evict_next else self._decode_step(self._plan)

    def _open(self) -> list[Message]:
        """Make room for the query, and say at once that its turn has come."""
        self._prefill_began_ns = self._clock()
        self._record.begun(self._prefill_began_ns)
        self._sequence = self._engine.open_sequence(
            self._prompt_ids, len(self._prompt_ids) + self._cap, self._query.sampling)
        return [self._progress(Stage.PREFILL, '', self._rest_in_prefill_s(0))]

    def _prefill_chunk(self, sequence: 'Sequence') -> list[Message]:
        if not self._engine.prefill_chunk(sequence):
            rest_s = self._rest_in_prefill_s(sequence.n_prefilled)
            return [self._progress(Stage.PREFILL, '', rest_s)]
        token = self._engine.next_token(sequence)
        now_ns = self._clock()
        self._record.prefilled((now_ns - self._prefill_began_ns) / _NS)
        made = plan(self._plan_inputs(now_ns), self._planning.estimator, self._planning.config)
        self._plan = made
        self._evict_next = made.n_kept < len(self._prompt_ids)
        self._record.planned(made, now_ns)
        return [Planned(self.query_id, self._record.timing), *self._take(made, token)]

    @property
    def _opened(self) -> 'Sequence':
        if self._sequence is None:
            raise RuntimeError('the query has no place in the engine')
        return self._sequence

    def _evict(self, made: Plan) -> list[Message]:
        began_ns = self._clock()
        n_kept = self._engine.evict(self._opened, made.alpha)
        self._record.evicted(n_kept, (self._clock() - began_ns) / _NS)
        self._evict_next = False
        return [self._progress(Stage.DECODE, '', self._rest_in_decode_s(made))]

    def _decode_step(self, made: Plan) -> list[Message]:
        began_ns = self._clock()
        token, = self._engine.decode_step([self._opened], made.tier)
        return self._take(made, token, (self._clock() - began_ns) / _NS)

    def _take(self, made: Plan, token: int, step_s: float = nan) -> list[Message]:
        """Take a token that came out; the query ends with it or goes on."""
        self._last_token_ns = self._clock()
        self._record.token(self._last_token_ns, step_s)
        is_end = token in self._engine.end_ids
        text = '' if is_end else self._text.push(token)
        reason = self._finish_reason(is_end)
        if reason is FinishReason.NONE:
            return [self._progress(Stage.DECODE, text, self._rest_in_decode_s(made))]
        text += self._text.finish()
        if self._clock() >= self._query.plan_deadline_ns:
            return []       # whole but late: what is reported is the miss
        return [
            self._progress(Stage.DECODE, text, 0.0),
            self._end(Ending(Outcome.COMPLETED, reason))]

    def _finish_reason(self, is_end: bool) -> FinishReason:
        if is_end:
            return FinishReason.END_TOKEN
        if self._text.stopped:
            return FinishReason.STOP_STRING
        if self._record.timing.n_generated < self._cap:
            return FinishReason.NONE
        clients = self._query.cap_is_clients and self._cap == self._query.max_new_tokens
        return FinishReason.CLIENT_CAP if clients else FinishReason.SERVER_CAP

    def _missed(self) -> list[Message]:
        if self.done or self._clock() < self._query.plan_deadline_ns:
            return []
        timing = self._record.timing
        where = (f'after {timing.n_generated} of at most {self._cap} tokens' if timing.n_generated
                 else f'in the prefill of {timing.n_prompt} tokens')
        self._text.finish()
        return [self._end(Ending(
            Outcome.DEADLINE_MISSED, error_code=ErrorCode.DEADLINE_MISSED,
            error_msg=f'the deadline came {where}'))]

    def _failed(self, code: ErrorCode, error: Exception) -> Finished:
        lines = str(error).strip().splitlines()
        what = lines[0] if lines else type(error).__name__
        return self._end(Ending(Outcome.FAILED, error_code=code, error_msg=what))

    def _end(self, ending: Ending) -> Finished:
        self.done = True
        sequence, self._sequence = self._sequence, None
        if sequence is not None:
            self._engine.close(sequence)
        self._record.ended()
        return Finished(
            self.query_id, ending, self._text.text, self._record.timing, self._last_token_ns)

    def _progress(self, stage: Stage, text: str, rest_s: float) -> Progress:
        now_ns = self._clock()
        self.latest_end_ns = now_ns + round(rest_s * _NS)
        at_risk = self.latest_end_ns > self._query.plan_deadline_ns
        if at_risk:
            self._record.at_risk()
        return Progress(
            self.query_id, stage, text, self._record.timing.n_generated, self.latest_end_ns,
            at_risk, now_ns)

    def _rest_in_prefill_s(self, n_prefilled: int) -> float:
        return rest_in_prefill_s(self._planning, self._plan_inputs(self._clock()), n_prefilled)

    def _rest_in_decode_s(self, made: Plan) -> float:
        n_generated = self._record.timing.n_generated
        # a response longer than its worst case: from then on the cap is the worst case
        n_worst = made.n_worst if n_generated < made.n_worst else self._cap
        rest_s = rest_in_decode_s(
            self._planning, made.n_kept + n_generated - 1, n_worst - n_generated)
        return rest_s + (made.predicted_evict_s if self._evict_next else 0.0)

    def _plan_inputs(self, now_ns: int) -> PlanInputs:
        return PlanInputs(
            n_prompt=len(self._prompt_ids), cap=self._cap, alpha_max=self._query.alpha_max,
            budget_left_s=(self._query.plan_deadline_ns - now_ns) / _NS)
