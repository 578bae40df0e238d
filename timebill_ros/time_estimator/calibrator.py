# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Which coefficients are true now: the stored profile of one key, moved by drift tracking.

What was tracked survives the process: it is kept in ``state/`` beside the profiles, at once when
something new is told, else every few seconds. A killed calibrator loses a few samples at most.
"""

from collections import deque, OrderedDict
import json
import os
from pathlib import Path

from timebill_ros.query import QueryTiming
from timebill_ros.time_estimator.coefficients import (
    CoefficientsError, FROM_FILE, save, TimingCoefficients)
from timebill_ros.time_estimator.profile_file import load_for, profile_path, set_aside
from timebill_ros.time_estimator.tracking import DriftTracker, TrackingConfig

TRACKED = 'tracked'             # source of what drift tracking moved
SAVE_PERIOD_S = 10.0
_MAX_REMEMBERED = 32            # published sets that a late record may still name
_WINDOW_QUERIES = 100           # over which the share of underestimated queries is taken


class Calibrator:
    """The coefficients of one key: where they come from, and where they went since."""

    def __init__(self, cache_dir: Path, key: str, config: TrackingConfig, tracking: bool) -> None:
        """Begin without a profile; ``tracking`` False: what was profiled holds for ever."""
        self.key = key
        self.current: TimingCoefficients | None = None      # what is to be published
        self.source = ''
        self.tracker: DriftTracker | None = None
        self.path = profile_path(cache_dir, key)
        self._config = config
        self._tracking = tracking
        self._state_path = cache_dir / 'state' / f'drift-{self.path.name}'
        self._published: OrderedDict[int, TimingCoefficients] = OrderedDict()
        self._underestimated: deque[bool] = deque(maxlen=_WINDOW_QUERIES)
        self._file_ns = 0               # when the profile in force was written
        self._unsaved = False
        self._saved_s = 0.0             # steady clock

    def load(self) -> list[str]:
        """
        Use the stored profile, and what was tracked since; returns what had to be put right.

        Raises FileNotFoundError if there is none, and CoefficientsError if there is one that is
        damaged or of another key: it is then kept aside, and the message says so.
        """
        try:
            self._file_ns = self._written_ns()
            base = load_for(self.path, self.key)
        except CoefficientsError as error:
            self.current = self.tracker = None
            raise CoefficientsError(f'{error}; {set_aside(self.path)}') from error
        notes: list[str] = []
        state = self._load_state(base, notes) if self._tracking else None
        self._begin(base, FROM_FILE)
        if state is not None:
            tracker, current, source = state
            self.tracker = tracker
            self._publish(current, source)
            self._unsaved = False
        return notes

    def file_changed(self) -> bool:
        """Tell whether the stored profile was written since it was loaded, or is there at last."""
        return self._written_ns() not in (0, self._file_ns)

    def adopt(self, base: TimingCoefficients, source: str) -> None:
        """Begin with a new profile; raises CoefficientsError if it is of another key."""
        base.require_key(self.key)
        if not self._written_ns():      # made on another machine, or with another cache directory
            try:
                save(self.path, base)
            except OSError:
                pass                    # it holds without a file; the next process asks again
        self._file_ns = self._written_ns()
        self._begin(base, source)

    def observe(self, timing: QueryTiming, now_ns: int) -> bool:
        """Take in a query's record; True if there is something new to publish."""
        tracker, current = self.tracker, self.current
        if tracker is None or current is None:
            return False
        planned_with = self._published.get(timing.coefficients_stamp_ns)
        seen = tracker.observe(timing, planned_with)
        if not seen:
            return False
        self._underestimated.append(any(late for _, late in seen))
        self._unsaved = True
        if not (self._tracking and tracker.moved):
            return False
        self._publish(tracker.publish(max(now_ns, current.stamp_ns + 1)), TRACKED)
        return True

    @property
    def underestimated_share(self) -> float:
        """Return the share of the newest queries of which a stage exceeded its worst case."""
        return sum(self._underestimated) / max(1, len(self._underestimated))

    @property
    def queries(self) -> int:
        """Return over how many queries that share is taken."""
        return len(self._underestimated)

    def save_state(self, now_s: float, at_once: bool = False) -> None:
        """Keep what was tracked, if there is anything new and it is time (steady clock)."""
        if self.tracker is None or self.current is None or not self._unsaved:
            return
        if not at_once and now_s - self._saved_s < SAVE_PERIOD_S:
            return
        state = {'tracker': self.tracker.state(), 'current': self.current.to_dict(),
                 'source': self.source}
        self._state_path.parent.mkdir(parents=True, exist_ok=True)
        partial = self._state_path.with_name(f'{self._state_path.name}.{os.getpid()}.part')
        partial.write_text(json.dumps(state, allow_nan=False) + '\n', encoding='utf-8')
        os.replace(partial, self._state_path)
        self._unsaved, self._saved_s = False, now_s

    def _written_ns(self) -> int:
        """Return when the stored profile was written; 0 = there is none that can be seen."""
        try:
            return self.path.stat().st_mtime_ns
        except OSError:
            return 0

    def _begin(self, base: TimingCoefficients, source: str) -> None:
        self.tracker = DriftTracker(base, self._config)
        self._underestimated.clear()
        self._publish(base, source)

    def _publish(self, coefficients: TimingCoefficients, source: str) -> None:
        self.current, self.source = coefficients, source
        self._published[coefficients.stamp_ns] = coefficients
        while len(self._published) > _MAX_REMEMBERED:
            self._published.popitem(last=False)
        self._unsaved = True
        self._saved_s = float('-inf')

    def _load_state(
            self, base: TimingCoefficients, notes: list[str],
            ) -> tuple[DriftTracker, TimingCoefficients, str] | None:
        """Return what an earlier process tracked of this profile; None if there is nothing."""
        try:
            state = json.loads(self._state_path.read_text(encoding='utf-8'))
            if state['tracker']['base_stamp_ns'] != base.stamp_ns:
                return None             # of an older profile
            current = TimingCoefficients.from_dict(state['current'])
            current.require_key(self.key)
            return DriftTracker(base, self._config, state['tracker']), current, state['source']
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
            notes.append(f'{self._state_path} cannot be used: {error!r}; '
                         f'{set_aside(self._state_path)}, '
                         'tracking begins anew')
            return None
