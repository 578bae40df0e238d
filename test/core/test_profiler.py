# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The profiler on a made-up machine with a clock of its own: points, rounds, budget, cancel."""

from dataclasses import replace
from math import inf
import random

import pytest

from timebill_ros.executor.messages import ModelInfo
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.profiler import (
    Effort, profile, ProfileCanceled, Progress, START_UP, THOROUGH)

INFO = ModelInfo(
    'Tiny', 'Tiny-1234', 'llama', 'Test CPU x2 threads', 'float32', ['fp32', 'int8'], 2, 4, 2, 16,
    100, 8192, 512, 512, {}, '1', max_batch=4)


class Machine:
    """A machine whose laws are known; measuring moves its clock."""

    chunk_tokens = 256
    padded_lengths: list[int] = []
    attention_stair = 1
    prefills_first = 0

    def __init__(self, slowness: float = 1.0, spread: float = 0.01) -> None:
        self.info = INFO
        self.now_s = 0.0
        self.visited: list[tuple[str, int]] = []
        self._slowness = slowness
        self._spread = spread
        self._rng = random.Random(1)

    def clock_s(self) -> float:
        return self.now_s

    def measure_prefill(self, n_tokens: int, n_done: int = 0) -> float:
        return self._take('prefill', n_tokens, self.prefill_s(n_tokens) - (
            self.prefill_s(n_done) if n_done else 0.0))

    def measure_decode_step(
            self, n_cached: int, repeats: int, tier: str, width: int = 1) -> list[float]:
        return [self._take('decode_step', n_cached, self.step_s(n_cached, tier, width))
                for _ in range(repeats)]

    def measure_reevict(self, n_prompt: int, alpha: float) -> float:
        return self._take('reevict', n_prompt, 0.001 + 1e-6 * n_prompt)

    def measure_cold(self, idle_s: float) -> float:
        self.now_s += idle_s
        return self._take('cold', 1, 0.004)

    def measure_evict(self, n_prompt: int, alpha: float) -> float:
        return self._take('evict', n_prompt, 0.002 + 1e-6 * n_prompt)

    def measure_overhead(self, n_tokens: int) -> float:
        return self._take('overhead', n_tokens, 0.001 + 1e-4 * n_tokens)

    @staticmethod
    def step_s(n_cached: int, tier: str, width: int = 1) -> float:
        return {'fp32': 0.03, 'int8': 0.01}[tier] * (0.8 + 0.2 * width) + 1e-5 * width * n_cached

    @staticmethod
    def prefill_s(n_tokens: int) -> float:
        return 1e-7 * n_tokens ** 2 + 1e-3 * n_tokens + 0.01

    def _take(self, law: str, n_tokens: int, seconds: float) -> float:
        seconds *= self._slowness * max(0.9, self._rng.gauss(1.0, self._spread))
        self.now_s += seconds
        self.visited.append((law, n_tokens))
        return seconds


@pytest.mark.parametrize('effort', [START_UP, THOROUGH])
def test_the_fit_is_good_between_and_beyond_the_points(effort: Effort) -> None:
    machine = Machine()
    coefficients, samples = profile(machine, effort, clock_s=machine.clock_s)
    estimator = TimeEstimator(coefficients, 'fp32')
    for n in (20, 333, 1500, 5000, 8000):
        assert estimator.prefill_s(n) == pytest.approx(Machine.prefill_s(n), rel=0.03)
        for tier in INFO.tiers:
            step_s = TimeEstimator(coefficients, tier).decode_s(n, 1)
            assert step_s == pytest.approx(Machine.step_s(n, tier), rel=0.03)
        assert estimator.evict_s(n) == pytest.approx(0.002 + 1e-6 * n, rel=0.05)
    assert estimator.overhead_s(100) == pytest.approx(0.011, rel=0.05)
    assert coefficients.key == 'Test CPU x2 threads | Tiny-1234 | float32 | engine 1'
    assert sum(law.samples for law in coefficients.laws) <= len(samples)


def test_the_start_up_profile_keeps_its_budget() -> None:
    for slowness in (0.1, 1.0, 5.0, 10.0):
        machine = Machine(slowness)
        profile(machine, START_UP, clock_s=machine.clock_s)
        assert machine.now_s < 30.0


def test_a_machine_too_slow_for_the_budget_is_measured_on_shorter_contexts() -> None:
    machine = Machine(slowness=20.0)
    profile(machine, START_UP, clock_s=machine.clock_s)
    assert max(n for _, n in machine.visited) < START_UP.max_tokens


def test_a_machine_that_slows_down_meanwhile_does_not_stretch_it_for_long() -> None:
    machine = Machine()
    coefficients, _ = profile(
        machine, START_UP, lambda _: setattr(machine, '_slowness', 8.0), clock_s=machine.clock_s)
    assert machine.now_s < 30.0 and all(law.samples >= 3 for law in coefficients.laws)


def test_the_points_are_visited_in_rounds_of_different_order() -> None:
    machine = Machine()
    seen: list[Progress] = []
    effort = Effort(max_tokens=2048, points=5, rounds=3, most_rounds=3, budget_s=inf)
    profile(machine, effort, seen.append, clock_s=machine.clock_s)
    size = seen[-1].total // 3
    rounds = [[each.law for each in seen[i * size:(i + 1) * size]] for i in range(3)]
    assert len(seen) == 3 * size and seen[0].total == seen[-1].total
    assert rounds[0] != rounds[1] and sorted(rounds[0]) == sorted(rounds[1]) == sorted(rounds[2])
    assert [each.done for each in seen] == list(range(3 * size))


@pytest.mark.parametrize('effort', [THOROUGH, replace(THOROUGH, rounds=4, most_rounds=4)])
def test_how_long_it_takes_is_said_before_it_starts(effort: Effort) -> None:
    machine = Machine()
    seen: list[tuple[float, Progress]] = []
    profile(
        machine, effort, lambda each: seen.append((machine.now_s, each)),
        clock_s=machine.clock_s)
    for at_s, progress in (seen[0], seen[len(seen) // 2]):
        assert progress.left_s == pytest.approx(machine.now_s - at_s, rel=0.4)


@pytest.mark.parametrize('longest, context', [(1, 8192), (63, 8192), (4096, 64)])
def test_a_context_that_is_too_short_to_measure_is_named(longest: int, context: int) -> None:
    machine = Machine()
    machine.info = replace(INFO, max_context=context)
    with pytest.raises(ValueError, match=f'max_tokens = {longest} .* context of {context} tokens'):
        profile(machine, replace(START_UP, max_tokens=longest), clock_s=machine.clock_s)
    assert not machine.visited


def test_cancel_ends_it_after_the_point_being_measured() -> None:
    machine = Machine()
    seen: list[Progress] = []
    with pytest.raises(ProfileCanceled):
        profile(machine, THOROUGH, seen.append, lambda: len(seen) > 3, machine.clock_s)
    assert len(seen) == 4
