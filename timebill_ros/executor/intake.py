# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
What the node wants of a loaded engine: its queries, and what else it asks for.

The talk thread calls ``take``, the model thread everything else; one lock guards what both touch.
"""

from dataclasses import asdict, dataclass, field, replace
import logging
import threading
import time
from typing import Any, TYPE_CHECKING

from timebill_ros.budget.admission import needs
from timebill_ros.budget.planner import PlanInputs, PlannerConfig, Planning
from timebill_ros.engine.endings import DROPPED
from timebill_ros.engine.errors import OutOfMemory, PromptRefused
from timebill_ros.engine.pipeline import Message, tiers_to_plan
from timebill_ros.engine.timing_record import TimingRecord
from timebill_ros.executor.demand import Pace
from timebill_ros.executor.dispatcher import Dispatcher
from timebill_ros.executor.job import Job
from timebill_ros.executor.learning import Learning
from timebill_ros.executor.messages import (
    Adopt, CancelProfile, Drop, Finished, ProfileDone, RunProfile, SetPolicy, Shutdown, Submit)
from timebill_ros.executor.outbox import Outbox
from timebill_ros.executor.scheduler import Scheduler
from timebill_ros.query import Ending, ErrorCode, NS_PER_S, Outcome, Query, QueryTiming
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import PREDICT

if TYPE_CHECKING:
    from timebill_ros.engine.engine import Engine

_LOG = logging.getLogger(__name__)
_PROFILING = Ending(
    Outcome.FAILED, error_code=ErrorCode.ENGINE_NOT_READY,
    error_msg='the model is being profiled; ask again when that is done')
_STOPPED = Ending(
    Outcome.FAILED, error_code=ErrorCode.SERVER_SHUTDOWN,
    error_msg='the engine was asked to stop')


@dataclass
class Gauges:
    """What the node shows of the queue."""

    waiting: int
    running: int


@dataclass
class _Requests:
    """What the model thread has to see to between queries."""

    profile: RunProfile | None = None
    stop: bool = False
    cancel_profile: threading.Event = field(default_factory=threading.Event)


class Intake:
    """Takes the node's messages; has the queries worked on, unit by unit."""

    def __init__(
            self, engine: 'Engine', outbox: Outbox, planning: Planning, key: str,
            learning: Learning) -> None:
        """Start with an empty queue; ``key`` is that of coefficients that may be adopted."""
        self._engine = engine
        self._outbox = outbox
        self._key = key
        self._requests = _Requests()
        self._changed = threading.Condition()
        self._learning = learning
        # Of the predictor of this process: no profile that is stored or published has it.
        self._predict_laws = [
            law for law in planning.estimator.coefficients.laws if law.law == PREDICT]
        planning = replace(planning, config=learning.adjust(planning.config))
        self._scheduler = Scheduler(
            Pace(planning), engine.info.max_batch,
            lambda job: engine.has_room(job.needs.n_prompt + job.cap))
        self._dispatcher = Dispatcher(engine, self._scheduler, self._changed)

    @property
    def planning(self) -> Planning:
        """What queries are planned with from now on."""
        return self._scheduler.pace.planning

    # --- talk thread

    def take(self, message: Any) -> None:
        """Do what a message of the node says."""
        if isinstance(message, Submit):
            self._submit(message.query)
        elif isinstance(message, Drop):
            self._drop(message.query_id)
        elif isinstance(message, Adopt):
            self._adopt(message)
        elif isinstance(message, SetPolicy):
            self._set_policy(message)
        elif isinstance(message, RunProfile):
            self._ask_profile(message)
        elif isinstance(message, CancelProfile):
            self._requests.cancel_profile.set()
        elif isinstance(message, Shutdown):
            with self._changed:
                self._requests.stop = True
                self._changed.notify()
        else:
            _LOG.warning('%s is no message for a running engine', type(message).__name__)

    def _submit(self, query: Query) -> None:
        try:
            refused = self._admit(query)
        except OutOfMemory as error:
            refused = _refusal(query, _failed(ErrorCode.OUT_OF_MEMORY, error))
        except PromptRefused as error:
            refused = _refusal(query, Ending(
                Outcome.INVALID, error_code=ErrorCode.INVALID_PROMPT, error_msg=str(error)))
        except Exception as error:      # a strange prompt must not end the engine
            _LOG.exception('query %s cannot be taken', query.query_id)
            refused = _refusal(query, _failed(ErrorCode.ENGINE_ERROR, error))
        if refused is not None:
            self._outbox.send(refused)

    def _admit(self, query: Query) -> Finished | None:
        """Queue a query; returns its end if it is refused."""
        began_ns, planning = time.monotonic_ns(), self.planning
        limit = self._engine.info.max_context
        prompt_ids = self._engine.tokenize(query.messages, limit)
        tokenize_s = (time.monotonic_ns() - began_ns) / NS_PER_S
        n_prompt = len(prompt_ids)
        cap = max(1, min(query.max_new_tokens, limit - n_prompt))
        record = TimingRecord(query, n_prompt, cap, tokenize_s, planning)
        if n_prompt + 1 > limit:
            return _refusal(query, Ending(
                Outcome.INVALID, error_code=ErrorCode.PROMPT_TOO_LONG,
                error_msg=f'the prompt has at least {n_prompt} tokens with its chat template; with '
                          f'one token of response the limit is {limit}'), record.timing)
        self._engine.check_memory(n_prompt + cap)
        inputs = PlanInputs(
            n_prompt, cap, budget_left_s=0.0, alpha_max=query.alpha_max,
            tiers=tiers_to_plan(planning, self._engine.info.tiers, query.min_tier))
        job = Job(
            query, needs(inputs, planning.estimator, planning.config, self._engine.chunk_tokens),
            prompt_ids, cap, tokenize_s)
        with self._changed:
            now_ns = time.monotonic_ns()
            ending = (_PROFILING if self._requests.profile is not None
                      else self._scheduler.submit(job, now_ns))
            self._changed.notify()
        if ending is not None:
            record.refused(job.needs, now_ns)
            return _refusal(query, ending, record.timing)
        return None

    def _drop(self, query_id: str) -> None:
        with self._changed:
            job = self._scheduler.drop(query_id)
            self._dispatcher.drop(query_id)
        if job is not None:
            self._outbox.send(self._dispatcher.never_ran(job, DROPPED))

    def _adopt(self, message: Adopt) -> None:
        try:
            coefficients = TimingCoefficients.from_dict(message.coefficients)
            coefficients.require_key(self._key)
            coefficients.require_tiers(self._engine.info.tiers)
            self._plan_with(coefficients, message.source)
        except ValueError as error:
            _LOG.warning('coefficients not adopted: %s', error)

    def _set_policy(self, message: SetPolicy) -> None:
        try:
            config = PlannerConfig.from_dict({**asdict(self.planning.config), **message.policy})
        except (ValueError, TypeError) as error:
            _LOG.warning('policy not set: %s', error)
            return
        with self._changed:
            config = self._learning.adjust(config)
            self._scheduler.pace = Pace(replace(self.planning, config=config))

    def _ask_profile(self, request: RunProfile) -> None:
        with self._changed:
            busy = self._scheduler.n_waiting or self._scheduler.n_running or self._requests.profile
            if not busy:
                self._requests.cancel_profile.clear()
                self._requests.profile = request
                self._changed.notify()
        if busy:
            self._outbox.send(ProfileDone(None, '', 'queries wait or run, or a profile does'))

    # --- model thread

    @property
    def stopping(self) -> bool:
        """The node wants the process to end."""
        return self._requests.stop

    @property
    def gauges(self) -> Gauges:
        """The queue as it is."""
        with self._changed:
            return Gauges(self._scheduler.n_waiting, self._scheduler.n_running)

    @property
    def cancel_profile(self) -> threading.Event:
        """Set when the running profile is to end."""
        return self._requests.cancel_profile

    def wait(self, timeout_s: float) -> None:
        """Wait until there may be something to do."""
        with self._changed:
            if not (self._scheduler.n_waiting or self._requests.profile or self._requests.stop):
                self._changed.wait(timeout_s)

    def work(self) -> list[Message] | None:
        """Do the next unit of work; returns what to send, None = nobody waits or runs."""
        return self._dispatcher.work()

    def told(self, seconds: float) -> None:
        """Count what it took to send what the latest ``work`` returned."""
        self._dispatcher.told(seconds)

    def learn(self, finished: Finished) -> None:
        """Take a query that has ended as an example, where factors are learned."""
        with self._changed:
            if self._learning.ended(finished, self.planning):
                config = self._learning.adjust(self.planning.config)
                self._scheduler.pace = Pace(replace(self.planning, config=config))

    def next_profile(self) -> RunProfile | None:
        """Return the profile asked for; until ``profiled`` no query is taken."""
        return self._requests.profile

    def profiled(self, coefficients: TimingCoefficients | None, source: str) -> None:
        """End a profile; with coefficients the queries from now on are planned with them."""
        if coefficients is not None:
            self._plan_with(coefficients, source)
        self._requests.profile = None

    def end_all(self) -> None:
        """End every query because the process ends."""
        self._outbox.send(*self._dispatcher.abort_all(_STOPPED))

    def _plan_with(self, coefficients: TimingCoefficients, source: str) -> None:
        estimator = TimeEstimator(
            coefficients.with_laws(PREDICT, self._predict_laws), self._engine.info.tiers[0])
        with self._changed:
            self._scheduler.pace = Pace(
                replace(self.planning, estimator=estimator, source=source))


def _failed(code: ErrorCode, error: Exception) -> Ending:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return Ending(Outcome.FAILED, error_code=code, error_msg=lines[0])


def _refusal(query: Query, ending: Ending, timing: QueryTiming | None = None) -> Finished:
    return Finished(query.query_id, ending, '', timing or QueryTiming(), last_token_ns=0)
