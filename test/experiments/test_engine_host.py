# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the experiments do in the node's place: Skip-Next, and answers that come late."""

from collections.abc import Callable
import time
from typing import Any

import pytest

from timebill_ros.executor.messages import Finished, Load, ModelInfo, Ready, Submit
from timebill_ros.experiments import engine_host
from timebill_ros.experiments.engine_host import EngineHost
from timebill_ros.experiments.tasks import Item
from timebill_ros.query import Ending, FinishReason, Outcome, Overrun, QueryTiming

INFO = ModelInfo('small', 'key', 'llama', 'cpu', 'float32', ['fp32'], 1, 1, 1, 1, 1, 64, 8, 1, {},
                 'version')
ITEM = Item('needle/0', 'needle', 'class', 'Where?', ('here',), 8)
BUDGET_S = 0.02
ANSWERED = Ending(Outcome.COMPLETED, FinishReason.END_TOKEN)


class Patient:
    """An engine process that is ready at once and answers when it is told to."""

    def __init__(self, argv: Any, environment: Any, hear: Callable[[Any, Any], None],
                 say: Any, ended: Any) -> None:
        self._hear = hear
        self.asked: list[Submit] = []

    def send(self, message: Any) -> None:
        if isinstance(message, Load):
            self._hear(self, Ready(INFO, {}, 'profile', 0.0, 0.0))
        elif isinstance(message, Submit):
            self.asked.append(message)

    def answer(self, ending: Ending = ANSWERED) -> None:
        query = self.asked[-1].query
        self._hear(self, Finished(query.query_id, ending, 'here', QueryTiming(), 0))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> EngineHost:
    """Return a host of a patient engine."""
    monkeypatch.setattr(engine_host, 'EngineProcess', Patient)
    return EngineHost(Load('small'))


def test_a_late_query_runs_on_and_skips_what_comes_meanwhile(host: EngineHost) -> None:
    engine = host._process
    late = host.submit(ITEM, BUDGET_S, overrun=Overrun.SKIP_NEXT)
    assert late.overrun_ns > 0
    time.sleep(BUDGET_S)
    skipped = host.submit(ITEM, BUDGET_S, overrun=Overrun.SKIP_NEXT)
    assert host.result(skipped)['outcome'] == 'SKIPPED'
    assert len(engine.asked) == 1
    engine.answer()
    assert host.result(late)['outcome'] == 'DEADLINE_MISSED'    # whole, but late
    following = host.submit(ITEM, 60.0, overrun=Overrun.SKIP_NEXT)
    engine.answer()
    assert host.result(following)['outcome'] == 'COMPLETED'


def test_a_killed_query_skips_nothing(host: EngineHost) -> None:
    killed = host.submit(ITEM, BUDGET_S, overrun=Overrun.KILL)
    assert killed.overrun_ns == 0
    time.sleep(BUDGET_S)
    host.submit(ITEM, 60.0, overrun=Overrun.KILL)
    host._process.answer()
    assert len(host._process.asked) == 2
