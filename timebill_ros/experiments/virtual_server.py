# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The server on a virtual clock: real scheduler, planner and queries, an engine of laws.

Goals and cancels arrive in the middle of units, as they do from the talk thread.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from timebill_ros.budget.admission import needs
from timebill_ros.budget.planner import PlanInputs, Planning
from timebill_ros.engine.endings import DROPPED
from timebill_ros.engine.pipeline import Message, tiers_to_plan
from timebill_ros.executor.demand import Pace
from timebill_ros.executor.dispatcher import Dispatcher
from timebill_ros.executor.job import Job
from timebill_ros.executor.messages import Finished
from timebill_ros.executor.scheduler import Scheduler
from timebill_ros.experiments.virtual_engine import (
    as_the_laws_say, Factor, VirtualClock, VirtualEngine)
from timebill_ros.query import NS_PER_S, Query, QueryTiming


@dataclass
class VirtualServer:
    """The executor of the engine process over a virtual engine."""

    planning: Planning
    n_slots: int
    chunk_tokens: int
    factor: Factor = as_the_laws_say
    beside: float = 0.0         # of a step that went ahead passes while the host is at work
    scheduler_class: type[Any] = Scheduler
    clock: VirtualClock = field(default_factory=VirtualClock)
    ended: dict[str, Finished] = field(default_factory=dict)
    ended_ns: dict[str, int] = field(default_factory=dict)
    on_message: Callable[[Message], None] = lambda message: None

    def __post_init__(self) -> None:
        """Put the parts together."""
        self.engine: Any = VirtualEngine(
            self.clock, self.planning.estimator, self.n_slots, self.chunk_tokens, self.factor)
        self.scheduler = self.scheduler_class(Pace(self.planning), self.n_slots)
        self.dispatcher = Dispatcher(self.engine, self.scheduler, nullcontext(), self.clock)

    def submit(self, query: Query, n_prompt: int, length: int) -> None:
        """Take a query whose response has ``length`` tokens, its end token included."""
        cap = query.max_new_tokens
        estimator, config = self.planning.estimator, self.planning.config
        inputs = PlanInputs(
            n_prompt, cap, budget_left_s=0.0, alpha_max=query.alpha_max,
            tiers=tiers_to_plan(self.planning, self.engine.info.tiers, query.min_tier))
        job = Job(query, needs(inputs, estimator, config, self.chunk_tokens),
                  [length] * n_prompt, cap)
        ending = self.scheduler.submit(job, self.clock())
        if ending is not None:
            self._take([Finished(query.query_id, ending, '', QueryTiming(), 0)])

    def cancel(self, query_id: str) -> None:
        """Drop a query, wherever it is."""
        job = self.scheduler.drop(query_id)
        self.dispatcher.drop(query_id)
        if job is not None:
            self._take([self.dispatcher.never_ran(job, DROPPED)])

    def run(self) -> None:
        """Work until nothing is due and nobody waits or runs."""
        while True:
            messages = self.dispatcher.work()
            if messages is not None:
                self._take(messages)
                self._work_beside()
            elif self.scheduler.n_waiting or self.scheduler.n_running:
                raise AssertionError('the engine is idle although somebody waits or runs')
            elif not self.clock.skip():
                return

    def _work_beside(self) -> None:
        """Let the host's time pass, which a step that went ahead hides."""
        beside_s, self.engine.beside_s = self.engine.beside_s, 0.0
        self.clock.advance(max(
            round(beside_s * NS_PER_S), round(self.beside * self.engine.ahead_ns)))

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            self.on_message(message)
            if isinstance(message, Finished):
                if message.query_id in self.ended:
                    raise AssertionError(f'{message.query_id} ended twice')
                self.ended[message.query_id] = message
                self.ended_ns[message.query_id] = self.clock()
