# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Measures a model on this machine, and fits the timing laws to what it measured.

The points (``points``) are visited in rounds, each in an order of its own, so that a disturbance or
a clock that warms up spreads over all of them instead of bending a law.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import floor, inf
import random
import time
from typing import Protocol

from timebill_ros.budget.kept import SNAPKV_WINDOW
from timebill_ros.executor.messages import ModelInfo
from timebill_ros.time_estimator import laws
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.fit import fit_law, Sample
from timebill_ros.time_estimator.laws import CONSTANT, Law
from timebill_ros.time_estimator.points import (
    Extent, fresh, LEAST_TOKENS, missing, Point, points, widths)
from timebill_ros.time_estimator.recovery import fit_recoveries, settled
from timebill_ros.time_estimator.spread import WORST_QUANTILE

_WIDE_STEPS = 32            # a visit of steps of several sequences, at most
_ORDER_SEED = 1             # the orders are shuffled, but the same every time
_CHEAP_S = 0.1              # a point of one sample that takes less is visited several times a round
_CHEAP_VISITS = 3
_ALPHAS = (0.5, 0.25, 0.9)      # of evictions, in turn: the law is of the prompt's length alone
_DOUBLING_TOKENS = 4096     # context at which a token is taken to cost twice as much, to begin with


class Target(Protocol):
    """What can be measured: an engine that has nothing else to do. Times in seconds."""

    info: ModelInfo
    chunk_tokens: int               # that a prefill computes at once
    padded_lengths: list[int]       # to which short prompts are filled up; [] = they are not
    attention_stair: int            # attention of longer ones is done for a multiple of so many
    prefills_first: int             # tokens, at most, that are prefilled before steps and evictions

    def measure_prefill(self, n_tokens: int, n_done: int = 0) -> float:
        """Return the time to prefill the tokens from ``n_done`` on of a prompt of ``n_tokens``."""

    def measure_decode_step(
            self, n_cached: int, repeats: int, tier: str, width: int = 1) -> list[float]:
        """Return those of the first steps of ``width`` responses with ``n_cached`` tokens each."""

    def measure_evict(self, n_prompt: int, alpha: float) -> float:
        """Return the time to evict the share ``alpha`` of a prompt of ``n_prompt`` tokens."""

    def measure_reevict(self, n_prompt: int, alpha: float) -> float:
        """Return the time to evict up to ``alpha`` where a smaller share was evicted before."""

    def measure_overhead(self, n_tokens: int) -> float:
        """Return the time around the model for a response of ``n_tokens``."""

    def measure_cold(self, idle_s: float) -> float:
        """Return how much longer the first prefill takes after ``idle_s`` of nothing."""


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    max_tokens: int         # longest context
    points: int             # of each law
    rounds: int             # visits of each point, at least, if the budget allows
    most_rounds: int
    budget_s: float         # no round begins that would end later, and none goes on beyond it
    steps: int = 9          # decode steps per visit of a point, the first of a response
    idle_s: float = 1.0     # before the first work that is taken as cold
    every_width: bool = True    # steps of every number of sequences, or only of one and the most

    def steps_of(self, width: int) -> int:
        """Return the steps per visit of so many sequences; several show no recovery."""
        return self.steps if width == 1 else min(self.steps, _WIDE_STEPS)


START_UP = Effort(
    max_tokens=4096, points=6, rounds=1, most_rounds=4, budget_s=15.0, steps=4, idle_s=0.3,
    every_width=False)
THOROUGH = Effort(max_tokens=32768, points=14, rounds=5, most_rounds=12, budget_s=150.0)
# steps of a GPU are short, and slower right behind a prefill than later on (``recovery``)
THOROUGH_GPU = replace(THOROUGH, rounds=2, budget_s=54.0, steps=64, idle_s=0.5)


@dataclass(frozen=True)
class Progress:
    """Where the profile stands."""

    law: str
    done: int               # points
    total: int
    left_s: float           # predicted


class ProfileCanceled(Exception):
    """Somebody asked the profile to end."""


def profile(
        target: Target, effort: Effort, report: Callable[[Progress], None] = lambda _: None,
        canceled: Callable[[], bool] = lambda: False,
        clock_s: Callable[[], float] = time.perf_counter,
        ) -> tuple[TimingCoefficients, list[Sample]]:
    """
    Measure and fit; returns the coefficients and the raw samples.

    ``report`` is called before the first point and after each. Raises ProfileCanceled soon after
    ``canceled`` says so, ValueError where the context is too short to be measured.
    """
    longest = _longest(target, effort)
    if longest < LEAST_TOKENS:
        raise ValueError(
            f'max_tokens = {effort.max_tokens} and a context of {target.info.max_context} tokens '
            f'leave {longest} to measure: {LEAST_TOKENS} are needed')
    began_s = clock_s()
    pilot = _Pilot(target, effort)
    visits = pilot.affordable_points()
    round_s = sum(pilot.cost_s(point) for point in visits)
    samples: list[Sample] = []
    order = random.Random(_ORDER_SEED)
    rounds = runs = 0
    while (more := _rounds_to_come(effort, rounds, clock_s() - began_s, round_s)):
        rounds += 1
        round_began_s = clock_s()
        order.shuffle(visits)
        for index, point in enumerate(visits):
            report(Progress(
                point.law, len(visits) * (rounds - 1) + index, len(visits) * (rounds - 1 + more),
                round_s * (more - index / len(visits))))
            if canceled():
                raise ProfileCanceled
            if clock_s() - began_s > effort.budget_s:
                rest = missing(samples, visits)
                if not rest:
                    return _fit(target, samples), samples
                if point.name not in rest:
                    continue
            runs += 1
            n = fresh(point, target.chunk_tokens, tuple(target.padded_lengths), order)
            samples += _measure(target, point, n, effort, runs)
        round_s = clock_s() - round_began_s
    return _fit(target, samples), samples


def _longest(target: Target, effort: Effort) -> int:
    """Return the longest context to measure in tokens, with room for the steps behind it."""
    return min(effort.max_tokens, target.info.max_context - effort.steps - 2)


def _rounds_to_come(effort: Effort, done: int, spent_s: float, round_s: float) -> int:
    """Return how many rounds follow: those that have to, and those that the budget has room for."""
    room = (effort.budget_s - spent_s) / max(round_s, 1e-9)
    return min(max(effort.rounds - done, floor(min(room, effort.most_rounds))),
               effort.most_rounds - done)


class _Pilot:
    """Warms the model up and, from that, foresees what measuring a point takes."""

    def __init__(self, target: Target, effort: Effort) -> None:
        self._target = target
        self._effort = effort
        self._chunk = min(target.chunk_tokens, (target.info.max_context - 1) // 2)
        self._step_s: dict[tuple[str, int], float] = {}
        self._shortest_s = inf          # a prefill, however short
        for n_tokens in (min(2 * SNAPKV_WINDOW, self._chunk), self._chunk):
            prefill_s = target.measure_prefill(n_tokens)
            self._shortest_s = min(self._shortest_s, prefill_s)
            self._token_s = prefill_s / n_tokens
            for tier in target.info.tiers:
                for width in widths(target.info, effort.every_width):
                    self._step_s[tier, width] = min(
                        target.measure_decode_step(n_tokens // width, 2, tier, width))
            target.measure_evict(n_tokens, _ALPHAS[0])
            target.measure_overhead(1)

    def cost_s(self, point: Point) -> float:
        """Return about how long it takes to measure a point."""
        growth = (_DOUBLING_TOKENS + point.n_tokens) / (_DOUBLING_TOKENS + self._chunk)
        if point.law == laws.PREFILL:
            return self._prefill_s(point.n_tokens - point.n_done, growth)
        if point.law == laws.COLD:
            return self._effort.idle_s
        step_s = self._step_s[point.tier or self._target.info.tiers[0], point.width]
        steps = {laws.DECODE_STEP: self._effort.steps_of(point.width),
                 laws.OVERHEAD: point.n_tokens}
        own_s = step_s * growth * steps.get(point.law, 1)
        first = min(point.n_tokens, self._target.prefills_first) if point.width == 1 else 0
        return own_s + self._prefill_s(first, growth) if first else own_s

    def _prefill_s(self, n_tokens: int, growth: float) -> float:
        return max(self._shortest_s, n_tokens * self._token_s * growth)

    def affordable_points(self) -> list[Point]:
        """Return the visits of a round, with a longest context that leaves time for all rounds."""
        target, effort = self._target, self._effort
        longest = _longest(target, effort)
        while True:
            extent = Extent(
                longest, effort.points, effort.every_width, tuple(target.padded_lengths))
            found = [
                point for point in points(target.info, extent, self._chunk)
                for _ in range(self._visits(point))]
            cost_s = effort.rounds * sum(self.cost_s(point) for point in found)
            if cost_s <= effort.budget_s or longest <= 2 * self._chunk:
                return found
            longest //= 2

    def _visits(self, point: Point) -> int:
        """Return how often to measure a point in a round."""
        once = point.law in (laws.DECODE_STEP, laws.COLD) or self.cost_s(point) > _CHEAP_S
        return 1 if once else _CHEAP_VISITS


def _measure(target: Target, point: Point, n: int, effort: Effort, run: int) -> list[Sample]:
    prefilled = 0
    alpha = _ALPHAS[run % len(_ALPHAS)] if point.law in (laws.EVICT, laws.REEVICT) else 0.0
    if point.law == laws.PREFILL:
        times = [target.measure_prefill(n, point.n_done)]
    elif point.law == laws.DECODE_STEP:
        times = target.measure_decode_step(
            n, effort.steps_of(point.width), point.tier, point.width)
        prefilled = min(n, target.prefills_first) if point.width == 1 else 0
    elif point.law == laws.EVICT:
        times = [target.measure_evict(n, alpha)]
    elif point.law == laws.REEVICT:
        times = [target.measure_reevict(n, alpha)]
    elif point.law == laws.COLD:
        times = [target.measure_cold(effort.idle_s)]
    else:
        times = [target.measure_overhead(n)]
    if point.law == laws.DECODE_STEP:       # each finds a token more in the cache
        return [
            Sample(point.law, n + number - 1, t, tier=point.tier, width=point.width, run=run,
                   point=point.n_tokens, step=number, prefilled=prefilled)
            for number, t in enumerate(times, 1)]
    return [
        Sample(point.law, n, t, point.n_done, alpha, run=run, point=point.n_tokens)
        for t in times]


def _fit(target: Target, samples: list[Sample]) -> TimingCoefficients:
    info = target.info
    names = dict.fromkeys((each.law, each.tier, each.width) for each in samples)
    order = {tier: index for index, tier in enumerate(info.tiers)}
    recoveries = fit_recoveries(samples)
    steady = settled(samples, recoveries)
    fitted = [
        fit_law(law, steady, tier, width, target.chunk_tokens, target.padded_lengths,
                target.attention_stair)
        for law, tier, width in sorted(names, key=lambda name: (
            laws.NAMES.index(name[0]), order.get(name[1], 0), name[2]))
        if law != laws.COLD]
    cold = [each.seconds for each in samples if each.law == laws.COLD]
    # only ever asked for in the worst case, so it is the largest seen
    fitted += [*recoveries.values(), Law(
        laws.COLD, CONSTANT, (max(cold),), samples=len(cold))]
    return TimingCoefficients(
        stamp_ns=time.time_ns(), device=info.device, model=info.key, dtype=info.dtype,
        engine_version=info.engine_version, worst_quantile=WORST_QUANTILE, laws=tuple(fitted))
