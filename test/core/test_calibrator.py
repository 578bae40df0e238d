# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The calibrator: stored profiles, what was tracked, and files that are not what they should be."""

from dataclasses import replace
from pathlib import Path

import pytest

from timebill_ros.query import DecodeStretch, QueryTiming
from timebill_ros.time_estimator.calibrator import Calibrator, TRACKED
from timebill_ros.time_estimator.coefficients import (
    CoefficientsError, FROM_FILE, FROM_PROFILE, save, TimingCoefficients)
from timebill_ros.time_estimator.laws import AFFINE, DECODE_STEP, Law, PREFILL, QUADRATIC
from timebill_ros.time_estimator.profile_file import profile_path
from timebill_ros.time_estimator.tracking import TrackingConfig

LAWS = (Law(PREFILL, QUADRATIC, (0.0, 1e-3, 0.0), worst_ratio=1.1, mape=0.05),
        Law(DECODE_STEP, AFFINE, (0.0, 0.02), worst_ratio=1.2, mape=0.05))
BASE = TimingCoefficients(1_000, 'cpu', 'model', 'float32', '1', LAWS)


def query(slow: float, planned_with: TimingCoefficients = BASE) -> QueryTiming:
    return QueryTiming(
        n_prompt=200, n_kept=200, n_generated=51, prefill=slow * 0.2,
        stretches=[DecodeStretch('fp32', 1, 200.0, 50, slow * 1.0)],
        coefficients_stamp_ns=planned_with.stamp_ns)


def calibrator(cache: Path, tracking: bool = True) -> Calibrator:
    return Calibrator(cache, BASE.key, TrackingConfig(), tracking)


def tracked(cache: Path, slow: float = 2.0) -> Calibrator:
    """Return a calibrator that has seen a slow machine."""
    made = calibrator(cache)
    made.load()
    for now_ns in range(5_000, 5_020):
        made.observe(query(slow, made.current), now_ns)
    return made


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Return a cache directory with the profile BASE."""
    save(profile_path(tmp_path, BASE.key), BASE)
    return tmp_path


def test_a_stored_profile_is_published_as_it_is(stored: Path) -> None:
    made = calibrator(stored)
    assert made.load() == []
    assert (made.current, made.source) == (BASE, FROM_FILE)


def test_without_a_profile_there_is_nothing_to_publish(tmp_path: Path) -> None:
    made = calibrator(tmp_path)
    with pytest.raises(FileNotFoundError):
        made.load()
    assert made.current is None
    assert not made.observe(query(2.0), 5_000)


def test_slow_queries_move_what_is_published_and_its_stamp(stored: Path) -> None:
    made = tracked(stored)
    assert made.source == TRACKED and made.current.stamp_ns > BASE.stamp_ns
    assert made.current.law(PREFILL, '').seconds(100) == pytest.approx(0.2, rel=0.05)
    assert made.underestimated_share < 0.5 and made.queries == 20


def test_stamps_only_grow_although_the_system_clock_may_not(stored: Path) -> None:
    made = calibrator(stored)
    made.load()
    stamps = [BASE.stamp_ns]
    for _ in range(20):
        if made.observe(query(2.0, made.current), now_ns=3):
            stamps.append(made.current.stamp_ns)
    assert len(stamps) > 1 and stamps == sorted(set(stamps))


def test_tracking_switched_off_publishes_the_profile_only(stored: Path) -> None:
    made = calibrator(stored, tracking=False)
    made.load()
    assert not any(made.observe(query(3.0), 5_000 + n) for n in range(30))
    assert made.current == BASE and made.underestimated_share == 1.0


def test_a_restart_loses_nothing_that_was_published(stored: Path) -> None:
    first = tracked(stored)
    first.save_state(now_s=0.0)
    second = calibrator(stored)
    assert second.load() == []
    assert (second.current, second.source) == (first.current, TRACKED)
    assert second.tracker.levels() == first.tracker.levels()


def test_what_moves_nothing_is_saved_after_a_while(stored: Path) -> None:
    made = tracked(stored)
    made.save_state(now_s=100.0)
    state = stored / 'state'
    before = [path.read_text() for path in state.iterdir()]
    made.observe(query(2.0, made.current), 6_000)
    made.save_state(now_s=101.0)
    assert [path.read_text() for path in state.iterdir()] == before
    made.save_state(now_s=200.0)
    assert [path.read_text() for path in state.iterdir()] != before


def test_what_was_tracked_of_an_older_profile_is_forgotten(stored: Path) -> None:
    tracked(stored).save_state(now_s=0.0)
    newer = replace(BASE, stamp_ns=9_000)
    save(profile_path(stored, BASE.key), newer)
    made = calibrator(stored)
    assert made.load() == []
    assert made.current == newer


@pytest.mark.parametrize('content', [b'', b'{"tracker": 3}', b'\xff', b'[]', b'{}'])
def test_a_damaged_state_is_kept_aside_and_tracking_begins_anew(
        stored: Path, content: bytes) -> None:
    tracked(stored).save_state(now_s=0.0)
    state, = (stored / 'state').iterdir()
    state.write_bytes(content)
    made = calibrator(stored)
    note, = made.load()
    assert str(state) in note and 'kept aside' in note
    assert made.current == BASE
    assert Path(f'{state}.bad').read_bytes() == content


def test_a_foreign_profile_is_kept_aside_and_both_keys_are_named(tmp_path: Path) -> None:
    foreign = replace(BASE, device='another')
    path = profile_path(tmp_path, BASE.key)
    save(path, foreign)
    made = calibrator(tmp_path)
    with pytest.raises(CoefficientsError) as refusal:
        made.load()
    assert foreign.key in str(refusal.value) and BASE.key in str(refusal.value)
    assert not path.exists() and Path(f'{path}.bad').exists()
    with pytest.raises(CoefficientsError):
        made.adopt(foreign, FROM_PROFILE)
    made.adopt(BASE, FROM_PROFILE)
    assert (made.current, made.source) == (BASE, FROM_PROFILE)
    assert path.exists()


def test_a_newly_written_profile_is_noticed(stored: Path) -> None:
    made = calibrator(stored)
    made.load()
    assert not made.file_changed()
    save(made.path, replace(BASE, stamp_ns=9_000))
    assert made.file_changed()


def test_where_no_profile_can_be_kept_one_is_used_all_the_same(tmp_path: Path) -> None:
    (tmp_path / 'profiles').touch()
    made = calibrator(tmp_path)
    with pytest.raises(CoefficientsError, match='cannot be read'):
        made.load()
    made.adopt(BASE, FROM_PROFILE)
    assert made.current == BASE and not made.file_changed()
