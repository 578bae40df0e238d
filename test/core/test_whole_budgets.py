# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Queries that have the engine to themselves, over many budgets: what is cut short has used its time.

On a virtual clock, with a length predictor that is often wrong and steps that are now slow, now
fast, all within their worst case.
"""

from itertools import pairwise
from math import exp
from pathlib import Path
import random

import pytest
from told_lengths import Predictor, SPREAD

from timebill_ros.budget import quality
from timebill_ros.budget.planner import PlannerConfig, Planning
from timebill_ros.executor.messages import Finished, Progress
from timebill_ros.experiments.virtual_server import VirtualServer
from timebill_ros.query import Outcome, Overrun, Query, Turn
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import (
    AFFINE, DECODE_STEP, EVICT, Law, OVERHEAD, PREFILL, REEVICT)

S = 1_000_000_000
STEP_S = 0.0064
WORST = 1.2
MARGIN_S = 0.02     # of delivery
HANDOVER_NS = 300_000
QUALITY = quality.load(
    Path(__file__).resolve().parents[2] / 'config' / 'quality' / 'smollm2-135m-instruct-cpu.json')
ESTIMATOR = TimeEstimator(TimingCoefficients(1, 'device', 'model', 'float32', '1', (
    Law(PREFILL, AFFINE, (1e-3, 0.01), worst_ratio=WORST),
    Law(EVICT, AFFINE, (5e-5, 0.001), worst_ratio=WORST),
    Law(REEVICT, AFFINE, (2e-6, 0.001), worst_ratio=WORST, samples=3),
    Law(OVERHEAD, AFFINE, (3e-4, 0.001), worst_ratio=WORST),
    *(Law(DECODE_STEP, AFFINE, (2e-6, STEP_S * speed), (), tier, WORST)
      for tier, speed in (('fp32', 1.0), ('int4', 0.65))))), 'fp32')


def ask(
        rng: random.Random, budget_s: float, overrun: Overrun, spikes: float = 0.0,
) -> tuple[Finished, int, list[bool]]:
    """
    Play one query; returns its end, when that was, and every deadline_at_risk.

    Of its units the share ``spikes`` takes twice as long, beyond their worst case.
    """
    level = rng.uniform(0.9, 1.1)
    server = VirtualServer(
        Planning(ESTIMATOR, PlannerConfig(pessimistic_factor=rng.choice([1.5, 5.0])), 'file',
                 QUALITY),
        n_slots=1, chunk_tokens=256, factor=lambda law, width: level * rng.uniform(0.91, 1.09) * (
            2.0 if spikes and rng.random() < spikes else 1.0))
    n_hat = exp(rng.uniform(2.0, 6.0))
    length = max(1, min(512, round(n_hat * exp(rng.gauss(0.0, SPREAD)))))
    server.engine.predictor = Predictor(n_hat)
    risks: list[bool] = []
    server.on_message = lambda message: (
        risks.append(message.deadline_at_risk) if isinstance(message, Progress) else None)
    server.submit(Query(
        'alone', [Turn('user', '')], 0, round(budget_s * S), round((budget_s - MARGIN_S) * S), 512,
        True, overrun=overrun, handover_ns=HANDOVER_NS), round(exp(rng.uniform(3.0, 6.5))), length)
    server.run()
    return server.ended['alone'], server.ended_ns['alone'], risks


@pytest.mark.parametrize('overrun', [Overrun.KILL, Overrun.SOFT_LANDING])
def test_what_is_cut_short_has_used_its_budget(overrun: Overrun) -> None:
    rng = random.Random(11)
    cut = whole = 0
    for _ in range(12):
        for index in range(30):
            budget_s = 0.1 * 100 ** (index / 29)
            finished, ended_ns, risks = ask(rng, budget_s, overrun)
            outcome, timing = finished.ending.outcome, finished.timing
            assert sum(a != b for a, b in pairwise(risks)) <= 4, timing.replans
            whole += outcome == Outcome.COMPLETED
            if outcome == Outcome.DEADLINE_MISSED:
                assert timing.n_generated <= 1      # it came to no second token
            if outcome == Outcome.TRUNCATED:
                cut += 1
                left_s = budget_s - MARGIN_S - ended_ns / S
                assert HANDOVER_NS / S <= left_s <= max(0.1 * budget_s, 5 * WORST * STEP_S), timing
    assert cut > 60 and whole > 60


def test_single_steps_beyond_their_worst_case_are_allowed_for_once_seen() -> None:
    rng = random.Random(13)
    cut = 0
    for _ in range(200):
        finished, _, _ = ask(rng, rng.uniform(1.0, 3.0), Overrun.KILL, spikes=0.2)
        timing = finished.timing
        if timing.n_generated > 20:
            assert finished.ending.outcome != Outcome.DEADLINE_MISSED, timing.replans
        cut += finished.ending.outcome == Outcome.TRUNCATED
    assert cut > 20
