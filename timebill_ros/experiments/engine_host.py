# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
An engine process for experiments: the node's own, without the node.

The same messages go over the same pipe as from the node, so queue, admission, planner and engine
are those that serve a robot; what is missing is DDS, and what the node itself does at a deadline.
So an answer that arrives late is a miss here too, and what arrives while a late query runs on
(Skip-Next) is skipped.
"""

from dataclasses import asdict
import os
import queue
import time
from typing import Any, Protocol
import uuid

from timebill_ros.executor.engine_command import engine_argv, engine_environment, engine_python
from timebill_ros.executor.engine_process import EngineProcess
from timebill_ros.executor.handover import Handover
from timebill_ros.executor.messages import (
    Finished, Load, LoadFailed, ModelInfo, Ready, SetPolicy, Shutdown, Submit)
from timebill_ros.experiments.tasks import Item
from timebill_ros.query import (
    Admission, Ending, ErrorCode, NS_PER_S, Outcome, Overrun, Query, QueryTiming, Sampling, Turn)

# Kept back from every budget for the way to whoever asked; there is no DDS here.
DELIVERY_MARGIN_S = 0.001
RUN_ON_S = 2.0      # how long a late query runs on under Skip-Next: the node's max_overrun_s
START_S = 600.0
SHUTDOWN_S = 2.0
GRACE_S = 60.0      # beyond a query's deadline, for its Finished to come
GENEROUS_S = 600.0  # the budget of a query that is to end by itself


class Host(Protocol):
    """Whoever answers questions: an engine process, or a server behind the ROS action."""

    def use(self, policy: dict[str, Any]) -> None:
        """Have the queries from now on planned with these fields of PlannerConfig."""

    def submit(self, item: Item, budget_s: float, overrun: Overrun = Overrun.KILL) -> Any:
        """Send a question that has to be answered within a budget; has a ``deadline_ns``."""

    def has_ended(self, query: Any, wait_s: float = 0.0) -> bool:
        """Wait up to ``wait_s`` for a query's end; tell whether it has ended."""

    def result(self, query: Any) -> dict[str, Any]:
        """Wait for a query's end and return the row of its answer."""

    def ask(self, item: Item, budget_s: float) -> dict[str, Any]:
        """Ask one question and wait for its end."""


class EngineFailed(RuntimeError):
    """The engine did not start, or ended; the message says why."""


class EngineHost:
    """A loaded engine that answers queries under one policy after the other."""

    def __init__(self, load: Load, engine_python_path: str = '') -> None:
        """Start it; returns when it is ready. Raises EngineFailed."""
        self.lines: list[str] = []
        self._heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._finished: dict[str, tuple[Finished, int]] = {}
        self._handover = Handover()
        self._may_run_late: dict[str, Query] = {}
        try:
            python = engine_python(engine_python_path)
            self._process = EngineProcess(
                lambda read_fd, write_fd: engine_argv(python, read_fd, write_fd),
                engine_environment(os.environ), lambda _, message: self._hear(message),
                self.lines.append, lambda: self._heard.put(None))
        except OSError as error:
            raise EngineFailed(f'the engine cannot be started: {error}') from error
        self._process.send(load)
        self._ready = self._wait_until_ready()
        self._policy = dict(load.policy)

    def __enter__(self) -> 'EngineHost':
        """Return it: it runs already."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it."""
        self.close()

    def close(self) -> None:
        """End it: kindly, then not."""
        self._process.send(Shutdown())
        self._process.wait(SHUTDOWN_S)
        self._process.kill()

    @property
    def info(self) -> ModelInfo:
        """What it serves."""
        return self._ready.info

    @property
    def ready(self) -> Ready:
        """What it said when it was ready."""
        return self._ready

    def use(self, policy: dict[str, Any]) -> None:
        """Have the queries from now on planned with these fields of PlannerConfig."""
        if policy != self._policy:
            self._process.send(SetPolicy(policy))
            self._policy = dict(policy)

    def submit(
            self, item: Item, budget_s: float, overrun: Overrun = Overrun.KILL,
            admission: Admission = Admission.BEST_EFFORT,
            arrival_ns: int | None = None) -> Query:
        """Send a question that has to be answered within a budget; its arrival is now."""
        now_ns = time.monotonic_ns() if arrival_ns is None else arrival_ns
        deadline_ns = now_ns + round(budget_s * NS_PER_S)
        runs_on = overrun == Overrun.SKIP_NEXT
        query = Query(
            uuid.uuid4().hex, [Turn('user', item.prompt)], now_ns, deadline_ns,
            deadline_ns - round(DELIVERY_MARGIN_S * NS_PER_S),
            min(item.max_new_tokens, self.info.n_max), True, admission=admission, overrun=overrun,
            sampling=Sampling(**self.info.sampling),
            overrun_ns=round(RUN_ON_S * NS_PER_S) * runs_on, handover_ns=self._handover.margin_ns)
        if self._late_one_runs(now_ns):
            skipped = Ending(Outcome.SKIPPED, error_code=ErrorCode.LATE_JOB_RUNNING)
            self._finished[query.query_id] = (
                Finished(query.query_id, skipped, '', QueryTiming(), 0), now_ns)
            return query
        if runs_on:
            self._may_run_late[query.query_id] = query
        self._process.send(Submit(query))
        return query

    def result(self, query: Query) -> dict[str, Any]:
        """Wait for a query's end and return the row of its answer."""
        finished, at_ns = self._wait_for(query)
        ending, timing = finished.ending, finished.timing
        in_time = at_ns <= query.deadline_ns
        if not in_time and ending.outcome in (Outcome.COMPLETED, Outcome.TRUNCATED):
            ending = Ending(Outcome.DEADLINE_MISSED, error_code=ErrorCode.DELIVERED_LATE)
        return {
            'outcome': ending.outcome.name, 'finish_reason': ending.finish_reason.name,
            'error': ending.error_msg, 'elapsed_s': (at_ns - query.arrival_ns) / NS_PER_S,
            'budget_s': (query.deadline_ns - query.arrival_ns) / NS_PER_S,
            'response': finished.text, 'timing': asdict(timing)}

    def ask(self, item: Item, budget_s: float, **fields: Any) -> dict[str, Any]:
        """Ask one question and wait for its end."""
        return self.result(self.submit(item, budget_s, **fields))

    def has_ended(self, query: Query, wait_s: float = 0.0) -> bool:
        """Wait up to ``wait_s`` for a query's end; tell whether it has ended."""
        return self._listen(query, time.monotonic() + wait_s)

    def _late_one_runs(self, now_ns: int) -> bool:
        """Tell whether a query under Skip-Next has missed its deadline and not yet ended."""
        return any(each.plan_deadline_ns <= now_ns and not self.has_ended(each)
                   for each in list(self._may_run_late.values()))

    def _wait_for(self, query: Query) -> tuple[Finished, int]:
        left_s = query.deadline_ns / NS_PER_S - time.monotonic()
        if not self._listen(query, time.monotonic() + max(0.0, left_s) + GRACE_S):
            raise EngineFailed(f'no answer to a query {GRACE_S:.0f} s after its deadline')
        return self._finished.pop(query.query_id)

    def _listen(self, query: Query, end_s: float) -> bool:
        while query.query_id not in self._finished:
            try:
                heard = self._heard.get(timeout=max(0.0, end_s - time.monotonic()))
            except queue.Empty:
                return False
            if heard is None:
                raise EngineFailed(self._last_words())
            message, at_ns = heard
            if isinstance(message, Finished):
                self._finished[message.query_id] = (message, at_ns)
                if message.sent_ns:
                    self._handover.measured(at_ns - message.sent_ns)
                self._may_run_late.pop(message.query_id, None)
        return True

    def _hear(self, message: Any) -> None:
        self._heard.put((message, time.monotonic_ns()))

    def _wait_until_ready(self) -> Ready:
        end_s = time.monotonic() + START_S
        while True:
            try:
                heard = self._heard.get(timeout=max(0.0, end_s - time.monotonic()))
            except queue.Empty:
                self._process.kill()
                raise EngineFailed(f'the engine was not ready after {START_S:.0f} s') from None
            message = None if heard is None else heard[0]
            if isinstance(message, Ready):
                return message
            if message is None or isinstance(message, LoadFailed):
                self._process.kill()
                raise EngineFailed(self._last_words() if message is None else message.error_msg)

    def _last_words(self) -> str:
        return 'the engine process ended:\n' + '\n'.join(self.lines[-20:])
