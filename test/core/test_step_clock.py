# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What decode steps take that go ahead, on a virtual clock: stages add up, nothing counts twice."""

from typing import Any

import pytest

from timebill_ros.budget.planner import PlannerConfig, Planning
from timebill_ros.engine.shared_step import StepClock
from timebill_ros.experiments.virtual_engine import VirtualClock, VirtualEngine
from timebill_ros.experiments.virtual_server import VirtualServer
from timebill_ros.query import NS_PER_S, Query, Turn
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import CONSTANT, DECODE_STEP, Law, OVERHEAD, PREFILL

STEP_S = 0.01
ESTIMATOR = TimeEstimator(TimingCoefficients(1, 'device', 'model', 'bf16', '1', (
    Law(PREFILL, CONSTANT, (0.1,)), Law(OVERHEAD, CONSTANT, (0.0,)),
    *(Law(DECODE_STEP, CONSTANT, (STEP_S,), tier='bf16', width=width) for width in (1, 2)))),
    'bf16')


def test_a_step_counts_from_its_start_or_from_the_end_of_the_one_it_followed_at_once() -> None:
    clock = VirtualClock()
    engine: Any = VirtualEngine(clock, ESTIMATOR, 2, 128)
    one, other = (engine.open_sequence([50] * 3, 100, None) for _ in range(2))
    steps = StepClock(clock)

    def step(seqs: list[Any], host_s: float, ahead: bool = True) -> float:
        clock.advance(round(host_s * NS_PER_S))
        return steps.step(engine, seqs, 'bf16', lambda over: ahead)[1]

    assert step([one], 0.3) == pytest.approx(STEP_S)
    assert step([one], 0.004) == pytest.approx(STEP_S)              # the host is quick enough
    assert step([one], 0.015) == pytest.approx(0.015)               # or takes longer than a step
    assert step([one, other], 0.0) == pytest.approx(STEP_S)         # behind a step in vain
    assert step([one, other], 0.002, ahead=False) == pytest.approx(STEP_S)
    assert not engine.ahead
    assert step([one, other], 0.002) == pytest.approx(STEP_S)


@pytest.mark.parametrize('beside', [0.0, 0.7])
def test_the_stages_of_a_query_add_up(beside: float) -> None:
    server = VirtualServer(
        Planning(ESTIMATOR, PlannerConfig(), 'file'), n_slots=2, chunk_tokens=128, beside=beside)
    for name, at_s in (('a', 0.0), ('b', 0.2)):
        at_ns = round(at_s * NS_PER_S)
        query = Query(name, [Turn('user', '')], at_ns, 10**11, 10**11, 30, True)
        server.clock.at(at_ns, lambda query=query: server.submit(query, 100, 40))
    server.run()
    for name, waited_s in (('a', 0.1), ('b', 0.0)):     # for the other's prefill
        timing = server.ended[name].timing
        assert timing.n_generated == 30 and sum(each.steps for each in timing.stretches) == 29
        assert timing.decode == pytest.approx(29 * STEP_S)
        spent_s = timing.queued + timing.prefill + timing.decode + timing.overhead + waited_s
        all_s = server.ended_ns[name] / NS_PER_S - (0.2 if name == 'b' else 0.0)
        assert all_s - STEP_S <= spent_s <= all_s + 1e-9
