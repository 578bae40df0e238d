# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Drift tracking: how much slower or faster than its profile the machine is now, law by law.

A profile is a base that never changes; what is tracked is one ratio per law, measured / base law at
the lengths that really came out. It is taken against the base and not against what was planned
with, so what is published never feeds back into what is observed.

    level   slow where it only strays, at once where it changed (``level_filter``)
    worst   1 + z * spread, the spread never below the profile's own; z follows the misses, as in
            adaptive conformal inference (arXiv 2106.00170): z += gain * (exceeded - target), so
            that in the long run the worst case is exceeded in the target share of queries

What is published of a law is base * level, with that worst ratio.

The laws share one machine. Where the prefill or decode steps have changed, another law that was far
off in one of the newest few queries has too; and a law that no query has told of since then, or
lately (another tier, another number of sequences at once, the eviction), takes the level of its
neighbour: decode steps that of the decode steps seen last, what happens once per prompt that of the
prefill.
"""

from dataclasses import dataclass, replace
from math import inf, log, log1p
from typing import Any

import numpy as np

from timebill_ros.query import QueryTiming
from timebill_ros.time_estimator.coefficients import (
    CoefficientsError, Drift, TimingCoefficients)
from timebill_ros.time_estimator.estimator import spread_of_mean
from timebill_ros.time_estimator.laws import (
    COLD, DECODE_STEP, Law, Name, OVERHEAD, PREFILL, RECOVERY)
from timebill_ros.time_estimator.level_filter import LevelFilter
from timebill_ros.time_estimator.query_samples import Sample, samples_of

FIRST_Z = 3.0
LAST_Z = 12.0
LEAST_SPREAD = 0.005            # what z works on where neither profile nor queries spread
LAST_WORST_RATIO = 10.0
LAST_RATIO = 1e3                # a ratio beyond it, or below its inverse, is no measurement
STALE_QUERIES = 8               # a law that none of so many queries told of takes another's level
_MOST_TIME = (PREFILL, DECODE_STEP)     # what most of the time goes by
_UNTRACKED = (COLD, RECOVERY)           # of which no query tells by itself
_JOINS_QUERIES = 3              # a law far off in one of so many queries joins another's change


@dataclass(frozen=True)
class TrackingConfig:
    """How drift is followed, and when it is told."""

    half_life_queries: float = 4.0      # a sample weighs half of one so many queries newer
    window_queries: int = 32            # samples remembered per law
    republish_threshold: float = 0.03   # relative change of a law, or its worst case, that is told
    high_ratio: float = 1.5             # drift is HIGH beyond this level, or below its inverse
    worst_gain: float = 1.0             # step of z when a query exceeds its worst case


@dataclass
class _Track:
    """What is known of one law, and how wide its worst case is."""

    filter: LevelFilter
    seen: int = 0                       # number of the query that told of it last; 0 = none did
    changed: int = 0                    # number of the first query since its last change
    z: float = FIRST_Z
    published: tuple[float, float] = (1.0, 1.0)     # level and worst case as last told

    def to_dict(self) -> dict[str, Any]:
        """Return what ``restore`` needs, as JSON knows it."""
        return {**self.filter.to_dict(), 'z': self.z, 'published': list(self.published),
                'seen': self.seen, 'changed': self.changed}

    def restore(self, fields: dict[str, Any]) -> None:
        """Go on where ``to_dict`` left off; raises ValueError on what it cannot have given."""
        level, worst = (float(each) for each in fields['published'])
        z = float(fields['z'])
        if not (0.0 < level < inf and 0.0 < worst < inf and FIRST_Z <= z <= LAST_Z):
            raise ValueError('the worst case is not a number that it can be')
        self.filter.restore(fields)
        self.z, self.published = z, (level, worst)
        self.seen, self.changed = int(fields['seen']), int(fields['changed'])


class DriftTracker:
    """Follows one base profile."""

    def __init__(
            self, base: TimingCoefficients, config: TrackingConfig = TrackingConfig(),
            state: dict[str, Any] | None = None) -> None:
        """
        Start as profiled, or where the ``state()`` of an earlier tracker left off.

        A state of another base is ignored; one that makes no sense raises CoefficientsError.
        """
        self.base = base
        self.config = config
        ages = np.arange(config.window_queries - 1, -1, -1)
        self._weights = 0.5 ** (ages / config.half_life_queries)
        self._queries = 0               # taken in so far
        self._tracks: dict[Name, _Track] = {
            law.name: self._new_track(law) for law in base.laws if law.law not in _UNTRACKED}
        if state is not None:
            try:
                self._restore(state)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise CoefficientsError(f'not a state of drift tracking: {error!r}') from error

    def observe(
            self, timing: QueryTiming,
            planned_with: TimingCoefficients | None = None) -> list[tuple[Sample, bool]]:
        """
        Take in a query's record; returns its stages, and of each if it exceeded its worst case.

        ``planned_with``: the coefficients that the record names, because a worst case is a promise
        made when planning; without them, what is tracked now.
        """
        seen: list[tuple[Sample, bool]] = []
        changed = False
        for sample in samples_of(timing):
            try:
                base = sample.law_of(self.base)
            except CoefficientsError:
                continue                # of a tier that was not profiled
            track = self._tracks.get(base.name)
            expected_s = sample.seconds(self.base)
            if track is None or base.width != sample.width or not _is_measurement(
                    sample.measured_s, expected_s):
                continue
            late = sample.measured_s > sample.worst_s(
                planned_with or self._now(self.base.stamp_ns))
            seen.append((sample, late))
            step = float(late) - (1.0 - self.base.worst_quantile)
            self._queries += len(seen) == 1
            track.z = min(max(track.z + self.config.worst_gain * step, FIRST_Z), LAST_Z)
            changed |= self._take(
                base.name, track, sample.measured_s / expected_s,
                spread_of_mean(sample.steps, base.correlation)) and base.law in _MOST_TIME
        if changed:
            for track in self._tracks.values():
                if track.seen > self._queries - _JOINS_QUERIES:
                    self._note_change(track, track.filter.join())
        return seen

    def _take(self, name: Name, track: _Track, ratio: float, spread: float) -> bool:
        """Take in a sample of one law; tells whether it shows that the law has changed."""
        neighbours = self._neighbours_level(name)
        if neighbours is not None and (
                abs(log(ratio / neighbours)) < abs(log(ratio / track.filter.level()))):
            track.filter.borrow(neighbours)
        track.seen = self._queries
        return self._note_change(track, track.filter.take(ratio, spread))

    def _note_change(self, track: _Track, samples: int) -> bool:
        if samples:
            track.changed = self._queries - samples + 1
        return samples > 0

    def law(self, base: Law) -> Law:
        """Return a law of the base as it is now."""
        if base.law == RECOVERY:        # a part of decode steps
            return base.scaled(self._level((DECODE_STEP, base.tier, 1)))
        track = self._tracks.get(base.name)
        if track is None:
            return base
        profiled = (base.worst_ratio - 1.0) / FIRST_Z
        spread = max(track.filter.spread(), profiled)
        ratio = 1.0 + FIRST_Z * spread + (track.z - FIRST_Z) * max(spread, LEAST_SPREAD)
        ratio = max(base.worst_ratio, min(ratio, LAST_WORST_RATIO))
        return replace(base.scaled(self._level(base.name)), worst_ratio=ratio)

    def levels(self) -> dict[Name, float]:
        """Return measured / base of every law that is tracked, by its name."""
        return {name: self._level(name) for name in self._tracks}

    @property
    def drift_ratio(self) -> float:
        """Return the level that is furthest from 1, of the laws that most of the time goes by."""
        levels = [level for (law, _, _), level in self.levels().items()
                  if law in _MOST_TIME]
        return max(levels, key=lambda level: abs(log(level)), default=1.0)

    @property
    def drift_state(self) -> Drift:
        """Tell how far the machine is from its profile."""
        off = abs(log(self.drift_ratio))
        if off > log(self.config.high_ratio):
            return Drift.HIGH
        return Drift.TRACKED if off > log1p(self.config.republish_threshold) else Drift.NONE

    @property
    def moved(self) -> bool:
        """Tell whether a law, or its worst case, is further from what was published than stated."""
        limit = log1p(self.config.republish_threshold)
        return any(
            abs(log(now / then)) > limit
            for name, track in self._tracks.items()
            for now, then in zip(self._state_of(name), track.published))

    def publish(self, stamp_ns: int) -> TimingCoefficients:
        """Return the coefficients as they are now, and take them as told."""
        for name, track in self._tracks.items():
            track.published = self._state_of(name)
        return self._now(stamp_ns)

    def state(self) -> dict[str, Any]:
        """Return what a later tracker needs to go on, as JSON knows it."""
        return {
            'key': self.base.key, 'base_stamp_ns': self.base.stamp_ns, 'queries': self._queries,
            'laws': [
                {'name': list(name), **track.to_dict()} for name, track in self._tracks.items()]}

    def _now(self, stamp_ns: int) -> TimingCoefficients:
        return replace(
            self.base, stamp_ns=stamp_ns, laws=tuple(self.law(base) for base in self.base.laws),
            drift_state=self.drift_state, drift_ratio=self.drift_ratio)

    def _level(self, name: Name) -> float:
        """Return the level of a law: its own, or where that is out of date its neighbour's."""
        neighbours = self._neighbours_level(name)
        return self._tracks[name].filter.level() if neighbours is None else neighbours

    def _neighbours_level(self, name: Name) -> float | None:
        """Return what is newer than a law's own level; None = nothing is."""
        track = self._tracks[name]
        if name[0] in (PREFILL, OVERHEAD):
            return None
        kind = DECODE_STEP if name[0] == DECODE_STEP else PREFILL
        newest = max((each for other, each in self._tracks.items() if other[0] == kind),
                     key=lambda each: each.seen)
        stale = track.seen < max(newest.changed, self._queries - STALE_QUERIES + 1)
        return newest.filter.level() if stale and newest.seen > track.seen else None

    def _state_of(self, name: Name) -> tuple[float, float]:
        base = next(each for each in self.base.laws if each.name == name)
        level = self._level(name)
        return level, level * self.law(base).worst_ratio

    def _new_track(self, law: Law) -> _Track:
        profiled = (law.worst_ratio - 1.0) / FIRST_Z
        return _Track(LevelFilter(self._weights, profiled), published=(1.0, law.worst_ratio))

    def _restore(self, state: dict[str, Any]) -> None:
        if (state.get('key'), state.get('base_stamp_ns')) != (self.base.key, self.base.stamp_ns):
            return
        self._queries = int(state['queries'])
        for fields in state['laws']:
            law, tier, width = fields['name']
            track = self._tracks.get((law, tier, width))
            if track is not None:
                track.restore(fields)


def _is_measurement(measured_s: float, expected_s: float) -> bool:
    return 1.0 / LAST_RATIO < measured_s / max(expected_s, 1e-12) < LAST_RATIO
