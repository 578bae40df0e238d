# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A real server with its node, asked through the ROS action, as the engine host is asked."""

from collections.abc import Callable
import concurrent.futures
from dataclasses import asdict, dataclass
import json
import os
import time
from typing import Any, TYPE_CHECKING

from timebill_ros.cli.server_process import ServerProcess
from timebill_ros.client import Answer, PendingAnswer, TimeBillClient
from timebill_ros.experiments.engine_host import EngineFailed, GRACE_S, START_S
from timebill_ros.experiments.recorder import Row
from timebill_ros.experiments.tasks import Item
from timebill_ros.query import Admission, NS_PER_S, Overrun

if TYPE_CHECKING:
    from timebill_ros.experiments.workbench import Settings

WARM_S = 60.0
LATE_WAIT_S = 30.0      # for the account of a query whose late answer is let finish


@dataclass
class RosQuery:
    """A question on its way. Times in nanoseconds of the steady clock."""

    pending: PendingAnswer
    deadline_ns: int


class RosHost:
    """A server under one policy after the other (each a start of its own), and a client of it."""

    def __init__(self, settings: 'Settings', say: Callable[[str], None], margin_s: float) -> None:
        """Start nothing yet: ``use`` does, with ``margin_s`` as the delivery margin."""
        os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        self._settings = settings
        self._say = say
        self._margin_s = margin_s
        self._policy: dict[str, Any] | None = None
        self._process: ServerProcess | None = None
        self._namespace = f'experiment_{os.getpid()}'
        self.client = TimeBillClient(namespace=self._namespace, late_wait_s=LATE_WAIT_S)

    def __enter__(self) -> 'RosHost':
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End server and client."""
        self._stop()
        self.client.close()

    def use(self, policy: dict[str, Any]) -> None:
        """Have a server with these planner parameters; raises EngineFailed with its last words."""
        if policy == self._policy:
            return
        self._stop()
        self._say('starting a server')
        settings = self._settings
        parameters: dict[str, Any] = {
            **policy, 'model': settings.model, 'tiers': list(settings.tiers),
            'engine_python': settings.engine_python, 'cache_dir': settings.cache_dir,
            'delivery_margin_s': self._margin_s}
        given = ['--namespace', self._namespace, '--no-calibration', '--device', settings.device]
        for name, value in parameters.items():
            given += ['--param', f'{name}:={json.dumps(value)}']
        self._process = ServerProcess(given)
        self._process.__enter__()
        if not self.client.wait_for_server(START_S):
            words = '\n'.join(list(self._process.log)[-20:])
            raise EngineFailed(f'the server did not start:\n{words}')
        self.client.ask('Hi', within=WARM_S, max_new_tokens=1)
        self._policy = dict(policy)

    def submit(self, item: Item, budget_s: float, overrun: Overrun = Overrun.KILL,
               admission: Admission = Admission.BEST_EFFORT) -> RosQuery:
        """Send a question; its arrival is now."""
        pending = self.client.ask_async(
            item.prompt, within=budget_s, max_new_tokens=item.max_new_tokens, overrun=overrun,
            admission=admission)
        return RosQuery(pending, time.monotonic_ns() + round(budget_s * NS_PER_S))

    def has_ended(self, query: RosQuery, wait_s: float = 0.0) -> bool:
        """Wait up to ``wait_s`` for a query's end; tell whether it has ended."""
        return query.pending in concurrent.futures.wait([query.pending], wait_s).done

    def result(self, query: RosQuery) -> Row:
        """Wait for a query's end and return the row of its answer."""
        left_s = max(0.0, query.deadline_ns / NS_PER_S - time.monotonic())
        return row_of(query.pending.result(left_s + LATE_WAIT_S + GRACE_S))

    def ask(self, item: Item, budget_s: float, **fields: Any) -> Row:
        """Ask one question and wait for its end."""
        return self.result(self.submit(item, budget_s, **fields))

    def _stop(self) -> None:
        process, self._process, self._policy = self._process, None, None
        if process is not None:
            process.__exit__(None, None, None)


def row_of(answer: Answer) -> Row:
    """Return the row of a client's answer."""
    return {
        'outcome': answer.outcome.name, 'finish_reason': answer.finish_reason.name,
        'error': answer.error_msg, 'elapsed_s': answer.elapsed_s, 'budget_s': answer.within_s,
        'response': answer.response, 'timing': asdict(answer.timing)}
