# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Queries answered without a node: as the server does it, their messages written to nobody.

What is measured so takes what it takes in a server: the scheduler, the planning, the text and the
messages between two units of work included, after which the processor's caches are cold.
"""

from collections.abc import Iterable
import os
import threading
import time
from typing import TYPE_CHECKING

from timebill_ros.budget.admission import needs
from timebill_ros.budget.planner import PlanInputs, Planning
from timebill_ros.engine.errors import EngineError
from timebill_ros.engine.pipeline import tiers_to_plan
from timebill_ros.executor.demand import Pace
from timebill_ros.executor.dispatcher import Dispatcher
from timebill_ros.executor.messages import Finished, write_message
from timebill_ros.executor.scheduler import Job, Scheduler
from timebill_ros.query import Outcome, Query, QueryTiming, Sampling

if TYPE_CHECKING:
    from timebill_ros.engine.engine import Engine

_NEVER_NS = 3_600_000_000_000


def question(number: int, n_tokens: int, sampling: Sampling) -> Query:
    """Return a query of ``n_tokens`` of response that is in no hurry; ``number`` tells it apart."""
    now_ns = time.monotonic_ns()
    return Query(
        f'{number:032x}', [], now_ns, now_ns + _NEVER_NS, now_ns + _NEVER_NS, n_tokens,
        cap_is_clients=False, sampling=sampling)


def answer(
        engine: 'Engine', planning: Planning, queries: Iterable[tuple[Query, list[int]]],
        ) -> list[QueryTiming]:
    """
    Answer queries, given with their prompts' ids, at the same time; returns their records.

    Raises EngineError if one of them does not complete.
    """
    scheduler = Scheduler(Pace(planning), engine.info.max_batch)
    dispatcher = Dispatcher(engine, scheduler, threading.RLock())
    for query, ids in queries:
        inputs = PlanInputs(
            len(ids), query.max_new_tokens, budget_left_s=0.0, alpha_max=query.alpha_max,
            tiers=tiers_to_plan(planning, engine.info.tiers, query.min_tier))
        need = needs(inputs, planning.estimator, planning.config, engine.chunk_tokens)
        scheduler.submit(Job(query, need, ids, query.max_new_tokens), time.monotonic_ns())
    ended: list[Finished] = []
    with open(os.devnull, 'wb') as nowhere:
        while (messages := dispatcher.work()) is not None:
            began_s = time.perf_counter()
            for message in messages:
                write_message(nowhere, message)
            dispatcher.told(time.perf_counter() - began_s)
            ended += [each for each in messages if isinstance(each, Finished)]
    for each in ended:
        if each.ending.outcome != Outcome.COMPLETED:
            raise EngineError(each.ending.error_msg)
    return [each.timing for each in ended]
