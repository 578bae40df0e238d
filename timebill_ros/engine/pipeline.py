# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""One query's way through the engine: prefill in chunks, plan, evict, decode step by step."""

from collections.abc import Callable
from enum import Enum
import logging
from math import nan
import time
from typing import NamedTuple, TYPE_CHECKING, Union

from timebill_ros.budget.forecast import rest_in_decode_s, rest_in_prefill_s
from timebill_ros.budget.planner import Plan, plan, PlanInputs, Planning
from timebill_ros.budget.watch import PlanWatch
from timebill_ros.engine import endings
from timebill_ros.engine.errors import OutOfMemory
from timebill_ros.engine.length_forecast import LengthForecast
from timebill_ros.engine.response import Response
from timebill_ros.engine.shared_step import decode_together, StepClock
from timebill_ros.engine.timing_record import TimingRecord
from timebill_ros.executor.messages import Finished, Planned, Progress
from timebill_ros.query import (
    Admission, Ending, FinishReason, NS_PER_S, Overrun, Query, QueryTiming, Stage)
from timebill_ros.time_estimator.laws import Behind

if TYPE_CHECKING:
    from timebill_ros.engine.engine import Engine
    from timebill_ros.engine.sequence import Sequence

Message = Union[Progress, Planned, Finished]
# A query at risk is so until it is predicted to leave this share of the time left over.
_RISK_CLEARS = 0.05
_LOG = logging.getLogger(__name__)


class Unit(Enum):
    """A piece of a query's work that is not interrupted."""

    OPEN = 'open'           # make room; says that its turn has come
    PREFILL = 'prefill'     # one chunk; with the last of them the plan and the first token
    EVICT = 'evict'
    STEP = 'step'           # a decode step, which several queries can share


class Room(NamedTuple):
    """What others leave a query."""

    budget_s: float         # engine time until its answer has to be whole
    width: int              # queries that are going to share a decode step


class QueryRun:
    """
    A query that has a place in the engine, as a state machine.

    The executor asks for ``next_unit`` and has it done: by ``advance``, or, a decode step, together
    with that of others by ``decode_together``. Both return what to send. The steady clock is
    looked at before and after each unit; at ``query.stop_ns`` the query ends with the text so far.
    """

    def __init__(
            self, engine: 'Engine', query: Query, prompt_ids: list[int], cap: int,
            planning: Planning, tokenize_s: float = nan,
            clock: Callable[[], int] = time.monotonic_ns,
            room: Callable[[int], Room] | None = None) -> None:
        """
        Prepare a query whose turn it is; the first ``advance`` begins the work.

        ``cap`` is the longest response in tokens (at least 1): the client's or the server's, or
        what the context leaves room for. ``room(now_ns)`` says what others leave it; None = alone.
        """
        self.done = False
        self.query = query
        self.latest_end_ns = query.plan_deadline_ns    # as predicted, worst case
        self.plan: Plan | None = None
        self.next_unit = Unit.OPEN
        self._n_promised = 0                            # N_W of its first plan, tokens
        self.n_prefilled = 0                            # tokens of the prompt, in whole chunks
        self.chunk_spent_s = 0.0                        # on the chunk that is not whole yet
        self.engine = engine
        self._prompt_ids = prompt_ids
        self._cap = cap
        self._planning = planning
        self.clock = clock
        self.step_clock = StepClock(clock)
        self._room = room or self._all_room
        self._tiers = tiers_to_plan(planning, engine.info.tiers, query.min_tier)
        self._record = TimingRecord(query, len(prompt_ids), cap, tokenize_s, planning)
        self._sequence: Sequence | None = None
        self._response = Response(engine, query, cap)
        self._last_token_ns = 0
        self._width = 1                                 # of its latest decode step
        self._tier = ''                                 # likewise
        self._prefill_s = 0.0
        self._hidden_s = 0.0    # beside the model, while a step that went ahead was under way
        self._dropped = False
        self._watch = PlanWatch(planning)
        self._forecast = LengthForecast(engine, prompt_ids, cap, planning.estimator)
        self._hopeless = False      # not even the cheapest theta fits the worst case
        self._at_risk = False       # as the newest feedback says

    @property
    def query_id(self) -> str:
        """The goal's id."""
        return self.query.query_id

    @property
    def timing(self) -> QueryTiming:
        """The record so far."""
        return self._record.timing

    @property
    def planning(self) -> Planning:
        """What it is planned with."""
        return self._planning

    @property
    def n_cached(self) -> int:
        """Tokens in its cache before its next decode step; once planned."""
        kept = self.timing.n_prompt if self.plan is None else self.plan.n_kept
        return kept + max(0, self.timing.n_generated - 1)

    @property
    def behind(self) -> Behind:
        """Where its next decode step lies; after the first token."""
        return Behind(self.timing.n_prompt, max(0, self.timing.n_generated - 1))

    @property
    def n_left(self) -> int:
        """Tokens to come in the worst case; once planned."""
        if self.plan is None:
            return self._cap
        # a response longer than its worst case: from then on the cap is the worst case
        n_worst = self.plan.cap if self.outgrown else self._n_worst
        return n_worst - self.timing.n_generated

    @property
    def n_left_at_most(self) -> int:
        """Tokens to come if nothing but the query's own cap ends the response."""
        return self._cap - self.timing.n_generated

    @property
    def outgrown(self) -> bool:
        """Tell whether the response is longer than the worst case that was planned for."""
        return self.plan is not None and self.timing.n_generated >= self._n_worst

    @property
    def evicts_next(self) -> bool:
        """Tell whether its next unit is an eviction."""
        return self.next_unit is Unit.EVICT

    def told(self, seconds: float) -> None:
        """
        Count what it took to send its messages and to choose its turn.

        Until the first token that is the prefill's: it grows with the number of its slices. While a
        decode step that went ahead is under way it takes no time, unless that step is undone.
        """
        if self.plan is None:
            self._prefill_s += seconds
        elif self.engine.ahead:
            self._hidden_s += seconds
        else:
            self._record.beside_the_model(seconds)

    def settled(self, waited_s: float) -> None:
        """Count what a step has hidden that was undone, and how long that took."""
        self.told(self._hidden_s + waited_s)
        self._hidden_s = 0.0

    @property
    def steps_again(self) -> bool:
        """
        Tell whether, as it looks, another decode step follows the one that is being done.

        Not before the state that this one leaves behind was looked at.
        """
        n_generated = self.timing.n_generated + 1
        return not (self._dropped or n_generated >= self.made.cap
                    or self._forecast.is_due(n_generated))

    def drop(self) -> None:
        """Have the query ended before its next unit: the node has ended it."""
        self._dropped = True

    def end_if_over(self) -> list[Message]:
        """End the query if it was dropped or its time is up; returns what to send."""
        if self.done:
            return []
        return [self._end(endings.DROPPED)] if self._dropped else self._missed()

    def end_in_time(self, unit_ns: int, is_step: bool) -> list[Message]:
        """
        End what we may cut short if there is no more time for that after another unit of work.

        A soft landing, or the planned cap of ``joint``: its last word on how much fits is the
        clock's. ``unit_ns`` is the unit's worst case by the laws; that of a step counts as longer
        where the newest steps were. Returns what to send.
        """
        if is_step and not self._keeps_promise:
            unit_ns = round(self._watch.beyond_worst * unit_ns)
        # what was promised by the laws may be whole at the last moment
        end_ns = self.query.plan_deadline_ns if self._keeps_promise else self.query.due_ns
        if self.done or self.clock() + unit_ns <= end_ns:
            return []
        if self._may_cap and self.timing.n_generated and self._planning.config.policy == 'joint':
            return self._end_capped()
        return self._land(0)

    def advance(self) -> list[Message]:
        """Do one unit of work and return what to send to the node; an error ends the query."""
        over = self.end_if_over()
        if self.done:
            return over
        if self.next_unit is Unit.STEP:
            return decode_together([self])
        try:
            return self._work() + self._missed()
        except Exception as error:      # one query's failure must not end the engine
            return [self.fail(error)]

    def abort(self, ending: Ending) -> Finished:
        """End the query from outside, as ``ending`` says."""
        return self._end(ending)

    def fail(self, error: Exception) -> Finished:
        """End the query because of an error."""
        if not isinstance(error, OutOfMemory):
            _LOG.error('query %s failed', self.query_id, exc_info=error)
        return self._end(endings.failed(error))

    # --- its units of work

    def _work(self) -> list[Message]:
        began_ns, before_s = self.clock(), self._model_s
        if self._sequence is None:
            messages = self._open(began_ns)
        elif self.next_unit is Unit.PREFILL:
            messages = self._prefill_chunk(self._sequence)
        else:
            messages = self._evict()
        self.told((self.clock() - began_ns) / NS_PER_S - (self._model_s - before_s))
        return messages

    @property
    def _model_s(self) -> float:
        evict_s = self.timing.evict
        return (self._prefill_s + self._forecast.seconds
                + (evict_s if evict_s == evict_s else 0.0))

    def _open(self, now_ns: int) -> list[Message]:
        """Make room for the query, and say at once that its turn has come."""
        self._record.begun(now_ns)
        self._sequence = self.engine.open_sequence(
            self._prompt_ids, len(self._prompt_ids) + self._cap, self.query.sampling)
        self._forecast.begin(self._sequence)
        self.engine.begin_prefill(self._sequence)       # while its turn is reported
        self._prefill_s += (self.clock() - now_ns) / NS_PER_S       # it grows with the prompt
        self.next_unit = Unit.PREFILL
        return [self._progress(Stage.PREFILL, '', self._rest_in_prefill_s())]

    def _prefill_chunk(self, sequence: 'Sequence') -> list[Message]:
        began_ns = self.clock()
        done = self.engine.prefill_chunk(sequence)
        token = self.engine.next_token(sequence) if done else -1
        now_ns = self.clock()
        took_s = (now_ns - began_ns) / NS_PER_S
        whole = sequence.n_prefilled > self.n_prefilled     # a chunk can take several calls
        self.chunk_spent_s = 0.0 if whole else self.chunk_spent_s + took_s
        self.n_prefilled = sequence.n_prefilled
        self._prefill_s += took_s
        if not done:
            # within a chunk nothing new is known, and there may be fifty slices
            rest_s = self._rest_in_prefill_s() if whole else max(
                0.0, (self.latest_end_ns - now_ns) / NS_PER_S)
            return [self._progress(Stage.PREFILL, '', rest_s)]
        self._record.prefilled(self._prefill_s)
        if self._forecast.name:
            self._forecast.predict(sequence)
            self._record.length_predicted(self._forecast)
            now_ns = self.clock()
        self.plan = made = plan(
            self._plan_inputs(now_ns), self._planning.estimator, self._planning.config,
            self._planning.quality)
        self.next_unit = Unit.EVICT if made.n_kept < len(self._prompt_ids) else Unit.STEP
        self._record.planned(made, now_ns)
        self._n_promised = made.n_worst
        self._hopeless = not made.feasible
        return [Planned(self.query_id, self._record.timing), *self._take(token),
                *self._end_at_cap()]

    def _evict(self) -> list[Message]:
        began_ns = self.clock()
        n_kept = self.engine.evict(self.sequence, self.made.alpha)
        self._record.evicted(n_kept, (self.clock() - began_ns) / NS_PER_S)
        self.next_unit = Unit.STEP
        return [self._progress(Stage.DECODE, '', self._rest_in_decode_s())]

    def stepped(
            self, token: int, step_s: float, tier: str, width: int, n_cached: float,
    ) -> list[Message]:
        """
        Take the token of a decode step that took ``step_s`` in ``tier``, and say what came of it.

        ``width`` queries shared the step, with ``n_cached`` tokens cached each on average.
        """
        if self._tier and tier not in (self._tier, self.made.tier):
            self._record.changed(self.clock(), 'tier', self._tier, tier, 'shared step')
        self._tier, self._width, self._hidden_s = tier, width, 0.0
        self._record.step(step_s, tier, width, n_cached)
        self._watch.stepped(step_s, tier, width, n_cached, self.behind)
        messages = self._take(token) + self._missed()
        if not self.done:
            self._forecast.refine(self.sequence, self.timing.n_generated)
            self._replan()
            messages += self._end_at_cap()
        return messages

    def _replan(self) -> None:
        """Look at the plan again if it is time to; a change holds from the next unit on."""
        timing, now_ns = self.timing, self.clock()
        late = self.latest_end_ns > self.query.due_ns
        made = self.made
        if not self._watch.is_due(timing.n_generated, made.cap, late):
            return
        found = self._watch.look(
            self._plan_inputs(now_ns), made, timing.n_generated, timing.n_kept,
            0 if self._promised else self._forecast.n_left)
        self._hopeless = found.at_risk
        if found.plan is not None:
            self._record.replanned(made, found.plan, now_ns, found.why)
            self.plan = found.plan
            if found.plan.n_kept < timing.n_kept:
                self.next_unit = Unit.EVICT

    @property
    def sequence(self) -> 'Sequence':
        """Its place in the engine; raises RuntimeError if it has none."""
        if self._sequence is None:
            raise RuntimeError('the query has no place in the engine')
        return self._sequence

    @property
    def made(self) -> Plan:
        """The plan; raises RuntimeError if there is none yet."""
        if self.plan is None:
            raise RuntimeError('the query has no plan')
        return self.plan

    # --- its tokens and its end

    def _take(self, token: int) -> list[Message]:
        """Take a token that came out; the query ends with it or goes on."""
        self._last_token_ns = self.clock()
        self._record.token(self._last_token_ns)
        text, reason = self._response.take(token)
        if reason is FinishReason.NONE:
            return [self._progress(Stage.DECODE, text, self._rest_in_decode_s()),
                    *self._land_if_wise()]
        text += self._response.finish()
        now_ns = self.clock()
        if now_ns >= self.query.plan_deadline_ns and not self.query.overrun_ns:
            return []       # whole but late: what is reported is the miss
        return [
            self._progress(Stage.DECODE, text, 0.0),
            self._end(endings.answered(self.query, reason, now_ns))]

    def _end_at_cap(self) -> list[Message]:
        """End an answer that is as long as planned, now that it was looked at once more."""
        if self.done or not self.timing.n_generated >= self.made.cap < self._cap:
            return []
        return self._end_capped()

    def _end_capped(self) -> list[Message]:
        now_ns = self.clock()
        if now_ns >= self.query.plan_deadline_ns:
            return []       # what is reported is the miss
        text = self._response.finish()
        return [
            self._progress(Stage.DECODE, text, 0.0),
            self._end(endings.answered(self.query, FinishReason.PLANNED_CAP, now_ns))]

    def _land_if_wise(self) -> list[Message]:
        """Land softly if the rest is predicted not to fit and this is a good place."""
        if (self.query.overrun != Overrun.SOFT_LANDING or self._keeps_promise
                or self.latest_end_ns <= self.query.due_ns):
            return []
        timing, inputs = self.timing, self._plan_inputs(self.clock())
        return self._land(self._watch.tokens_left(
            inputs, self.made, timing.n_generated, timing.n_kept))

    def _land(self, tokens_left: int) -> list[Message]:
        if self.query.overrun != Overrun.SOFT_LANDING or not self.timing.n_generated:
            return []
        now_ns = self.clock()
        if now_ns >= self.query.plan_deadline_ns or not self._response.land(tokens_left):
            return []
        return [self._end(endings.answered(self.query, FinishReason.LANDED, now_ns))]

    def _missed(self) -> list[Message]:
        if self.done or self.clock() < self.query.stop_ns:
            return []
        self._response.finish()
        return [self._end(endings.missed(self.query, self.timing, self._cap))]

    def _end(self, ending: Ending) -> Finished:
        self.done = True
        sequence, self._sequence = self._sequence, None
        if sequence is not None:
            self.engine.close(sequence)
        self._record.ended()
        return Finished(
            self.query_id, ending, self._response.text, self._record.timing,
            self._last_token_ns, self.clock())

    # --- what it is going to need

    def _progress(self, stage: Stage, text: str, rest_s: float) -> Progress:
        now_ns = self.clock()
        self.latest_end_ns = now_ns + round(rest_s * NS_PER_S)
        self._at_risk = self._is_at_risk(rest_s, (self.query.due_ns - now_ns) / NS_PER_S)
        if self._at_risk:
            self._record.at_risk()
        if self.query.overrun_ns and now_ns >= self.query.plan_deadline_ns:
            stage = Stage.LATE
        return Progress(
            self.query_id, stage, text, self._record.timing.n_generated, self.latest_end_ns,
            self._at_risk, now_ns)

    def _is_at_risk(self, rest_s: float, left_s: float) -> bool:
        """Tell whether a rest of that time is too long, or the answer will hardly be whole."""
        if self._hopeless and self.made.cap < self._cap:
            return True
        room_s = left_s * (1.0 - _RISK_CLEARS if self._at_risk and left_s > 0.0 else 1.0)
        if rest_s > room_s and self._width > 1 and self.next_unit is Unit.STEP:
            rest_s = self._rest_in_decode_s(width=1)    # who is late because of it shares none
        return rest_s > room_s

    def _rest_in_prefill_s(self) -> float:
        chunk_began_ns = self.clock() - round(self.chunk_spent_s * NS_PER_S)
        rest_s = rest_in_prefill_s(
            self._planning, self._plan_inputs(chunk_began_ns), self.n_prefilled)
        return max(0.0, rest_s - self.chunk_spent_s)

    def _rest_in_decode_s(self, width: int = 0) -> float:
        """Return the worst case in steps of ``width`` queries; 0 = as the latest."""
        made = self.made
        rest_s = rest_in_decode_s(
            self._planning, self.n_cached, self.n_left, self.behind, made.tier,
            width or self._width)
        return rest_s + (made.predicted_evict_s if self.next_unit is Unit.EVICT else 0.0)

    @property
    def _may_cap(self) -> bool:
        """Tell whether to cap what does not fit; what was promised is promised whole."""
        return self.query.overrun == Overrun.KILL and not self._promised

    @property
    def _n_worst(self) -> int:
        """N_W in tokens; of what was promised the first, because others' promises count with it."""
        return self._n_promised if self._promised else self.made.n_worst

    @property
    def _promised(self) -> bool:
        return self.query.admission == Admission.GUARANTEED

    @property
    def _keeps_promise(self) -> bool:
        """Tell whether it was promised whole, and is no longer than that was counted with."""
        return self._promised and not self.outgrown

    def _plan_inputs(self, now_ns: int) -> PlanInputs:
        room = self._room(now_ns)
        return PlanInputs(
            n_prompt=len(self._prompt_ids), cap=self._cap, alpha_max=self.query.alpha_max,
            budget_left_s=room.budget_s, width=room.width, tiers=self._tiers,
            may_trade=not self._promised, may_cap=self._may_cap,
            n_predicted=self._forecast.n_predicted, quantiles=self._forecast.quantiles)

    def _all_room(self, now_ns: int) -> Room:
        return Room((self.query.due_ns - now_ns) / NS_PER_S, 1)


def tiers_to_plan(planning: Planning, tiers: list[str], min_tier: str) -> tuple[str, ...]:
    """Return the tiers, best first, that a query allows and that can be planned with."""
    allowed = tiers[:tiers.index(min_tier) + 1] if min_tier in tiers else tiers
    return tuple(tier for tier in allowed if tier in planning.estimator.tiers)
