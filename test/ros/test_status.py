# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the status message says of the queries that have ended."""

from math import nan
from types import SimpleNamespace

from timebill_ros.executor.supervisor import EngineState
from timebill_ros.msg import ExecutorStatus
from timebill_ros.nodes.goal_record import GoalBook
from timebill_ros.nodes.status import StatusReport
from timebill_ros.query import Outcome


def test_k_is_that_of_the_newest_query() -> None:
    engine = SimpleNamespace(state=EngineState.READY, message='', restarts=0, pid=0)
    report = StatusReport()

    def status() -> ExecutorStatus:
        return report.message(engine, GoalBook(), 8, 5.0)

    assert status().pessimistic_factor == 5.0
    report.query_ended(Outcome.COMPLETED, 3.25)
    assert status().pessimistic_factor == 3.25
    report.query_ended(Outcome.INVALID, nan)        # it came to no plan
    assert status().pessimistic_factor == 3.25
    assert status().miss_ratio == 0.0
