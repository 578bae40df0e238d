# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Measures a model on this machine, and fits the timing laws to what it measured.

The points lie evenly on a logarithmic scale, from a short prompt to the longest context asked for,
and are visited in rounds, each in an order of its own, so that a disturbance or a clock that warms
up spreads over all of them instead of bending a law. Long prompts are not prefilled from their
start: one chunk of theirs is measured, behind as many cached tokens as it would have before it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
import random
import time
from typing import Protocol

from timebill_ros.budget.kept import SNAPKV_WINDOW
from timebill_ros.executor.messages import ModelInfo
from timebill_ros.time_estimator import laws
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.fit import fit_law, Sample, WORST_QUANTILE

_STEPS = 4                  # decode steps per visit of a point
_ORDER_SEED = 1             # the orders are shuffled, but the same every time
_SHORTEST = 16
LEAST_POINTS = 3            # of each law, before the budget may end a profile
_EVICT_ALPHAS = (0.25, 0.5, 0.9)
_OVERHEAD_TOKENS = (1, 6, 24)
_DOUBLING_TOKENS = 4096     # context at which a token is taken to cost twice as much, to begin with


class Target(Protocol):
    """What can be measured: an engine that has nothing else to do. Times in seconds."""

    info: ModelInfo
    chunk_tokens: int

    def measure_prefill(self, n_tokens: int, n_done: int = 0) -> float:
        """Return the time to prefill the tokens from ``n_done`` on of a prompt of ``n_tokens``."""

    def measure_decode_step(self, n_cached: int, repeats: int, tier: str) -> list[float]:
        """Return the times of steps, sampling included, from ``n_cached`` tokens cached on."""

    def measure_evict(self, n_prompt: int, alpha: float) -> float:
        """Return the time to evict the share ``alpha`` of a prompt of ``n_prompt`` tokens."""

    def measure_overhead(self, n_tokens: int) -> float:
        """Return the time around the model for a response of ``n_tokens``."""


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    max_tokens: int         # longest context
    points: int             # of each law
    rounds: int             # visits of each point, at least, if the budget allows
    most_rounds: int
    budget_s: float         # no round begins that would end later, and none goes on beyond it


START_UP = Effort(max_tokens=4096, points=6, rounds=1, most_rounds=4, budget_s=15.0)
THOROUGH = Effort(max_tokens=32768, points=12, rounds=5, most_rounds=12, budget_s=150.0)


@dataclass(frozen=True)
class Progress:
    """Where the profile stands."""

    law: str
    done: int               # points
    total: int
    left_s: float           # predicted


class ProfileCanceled(Exception):
    """Somebody asked the profile to end."""


@dataclass(frozen=True)
class _Point:
    law: str
    n_tokens: int
    n_done: int = 0
    alpha: float = 0.0
    tier: str = ''


def profile(
        target: Target, effort: Effort, report: Callable[[Progress], None] = lambda _: None,
        canceled: Callable[[], bool] = lambda: False,
        clock_s: Callable[[], float] = time.perf_counter,
        ) -> tuple[TimingCoefficients, list[Sample]]:
    """
    Measure and fit; returns the coefficients and the raw samples.

    ``report`` is called before the first point and after each. Raises ProfileCanceled soon after
    ``canceled`` says so.
    """
    began_s = clock_s()
    pilot = _Pilot(target)
    points = pilot.affordable_points(effort)
    round_s = sum(pilot.cost_s(point) for point in points)
    samples: list[Sample] = []
    order = random.Random(_ORDER_SEED)
    rounds = 0
    while rounds < effort.rounds or (rounds < effort.most_rounds and (
            clock_s() - began_s + round_s < effort.budget_s)):
        rounds += 1
        round_began_s = clock_s()
        order.shuffle(points)
        for index, point in enumerate(points):
            later = max(0, effort.rounds - rounds)
            left_s = round_s * (later + 1 - index / len(points))
            total = len(points) * (rounds + later)
            report(Progress(point.law, len(points) * (rounds - 1) + index, total, left_s))
            if canceled():
                raise ProfileCanceled
            if clock_s() - began_s > effort.budget_s and _are_enough(samples, points):
                return _fit(target.info, samples), samples
            samples += _measure(target, point)
        round_s = clock_s() - round_began_s
    return _fit(target.info, samples), samples


class _Pilot:
    """Warms the model up and, from that, foresees what measuring a point takes."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._chunk = min(target.chunk_tokens, (target.info.max_context - 1) // 2)
        for n_tokens in (min(2 * SNAPKV_WINDOW, self._chunk), self._chunk):
            self._token_s = target.measure_prefill(n_tokens) / n_tokens
            for tier in target.info.tiers:
                self._step_s = min(target.measure_decode_step(n_tokens, 2, tier))
            target.measure_evict(n_tokens, _EVICT_ALPHAS[0])
            target.measure_overhead(1)

    def cost_s(self, point: _Point) -> float:
        """Return about how long it takes to measure a point."""
        growth = 1.0 + point.n_tokens / _DOUBLING_TOKENS
        if point.law == laws.PREFILL:
            return (point.n_tokens - point.n_done) * self._token_s * growth
        steps = {laws.DECODE_STEP: _STEPS, laws.OVERHEAD: point.n_tokens}.get(point.law, 1)
        return self._step_s * growth * steps

    def affordable_points(self, effort: Effort) -> list[_Point]:
        """Return the points, with a longest context that leaves time for all rounds."""
        longest = min(effort.max_tokens, self._target.info.max_context - _STEPS - 2)
        while True:
            points = _points(longest, effort.points, self._chunk, self._target.info.tiers)
            cost_s = effort.rounds * sum(self.cost_s(point) for point in points)
            if cost_s <= effort.budget_s or longest <= 2 * self._chunk:
                return points
            longest //= 2


def _are_enough(samples: list[Sample], points: list[_Point]) -> bool:
    """Tell whether every law has been measured at LEAST_POINTS of its points."""
    wanted = {(each.law, each.tier) for each in points}
    seen = {(each.law, each.tier, each.n_tokens, each.n_done) for each in samples}
    counts = Counter(name[:2] for name in seen)
    return all(counts[name] >= LEAST_POINTS for name in wanted)


def _points(longest: int, count: int, chunk: int, tiers: list[str]) -> list[_Point]:
    lengths = _evenly(_SHORTEST, longest, count)
    points = [_Point(laws.PREFILL, n, n_done=0 if n <= 2 * chunk else n - chunk) for n in lengths]
    # one whole prefill beyond its first chunks, so that the chunks' sum is checked and not assumed
    points.append(_Point(laws.PREFILL, min(longest, 3 * chunk)))
    points += [_Point(laws.DECODE_STEP, n, tier=tier) for tier in tiers for n in lengths]
    points += [
        _Point(laws.EVICT, n, alpha=_EVICT_ALPHAS[index % len(_EVICT_ALPHAS)])
        for index, n in enumerate(_evenly(2 * SNAPKV_WINDOW, longest, count))]
    points += [_Point(laws.OVERHEAD, n) for n in _OVERHEAD_TOKENS]
    return points


def _evenly(first: int, last: int, count: int) -> list[int]:
    """Return ``count`` lengths, evenly on a logarithmic scale."""
    ratio = (last / first) ** (1.0 / max(1, count - 1))
    return sorted({min(last, round(first * ratio ** i)) for i in range(count)})


def _measure(target: Target, point: _Point) -> list[Sample]:
    if point.law == laws.PREFILL:
        times = [target.measure_prefill(point.n_tokens, point.n_done)]
    elif point.law == laws.DECODE_STEP:
        times = target.measure_decode_step(point.n_tokens, _STEPS, point.tier)
    elif point.law == laws.EVICT:
        times = [target.measure_evict(point.n_tokens, point.alpha)]
    else:
        times = [target.measure_overhead(point.n_tokens)]
    return [
        Sample(point.law, point.n_tokens, t, point.n_done, point.alpha, point.tier)
        for t in times]


def _fit(info: ModelInfo, samples: list[Sample]) -> TimingCoefficients:
    names = [(laws.PREFILL, ''), *((laws.DECODE_STEP, tier) for tier in info.tiers),
             (laws.EVICT, ''), (laws.OVERHEAD, '')]
    return TimingCoefficients(
        stamp_ns=time.time_ns(), device=info.device, model=info.key, dtype=info.dtype,
        engine_version=info.engine_version, worst_quantile=WORST_QUANTILE,
        laws=tuple(fit_law(name, samples, tier) for name, tier in names))
