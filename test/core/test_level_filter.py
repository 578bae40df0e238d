# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""One law's ratio: strays are smoothed, changes are followed at once."""

import json
from math import nan

import numpy as np
import pytest

from timebill_ros.time_estimator.level_filter import LevelFilter

WEIGHTS = 0.5 ** (np.arange(31, -1, -1) / 4.0)


def fed(ratios: list[float], sigma: float = 0.02) -> tuple[LevelFilter, list[int]]:
    """Return a filter that took these samples, and what it said of each."""
    level = LevelFilter(WEIGHTS, sigma)
    return level, [level.take(ratio, 1.0) for ratio in ratios]


def noisy(level: float, noise: float, count: int, seed: int = 0) -> list[float]:
    return list(level * np.exp(noise * np.random.default_rng(seed).standard_normal(count)))


@pytest.mark.parametrize('slow', [0.5, 1.3, 2.0, 5.0])
def test_three_samples_tell_of_a_change_and_two_of_the_way_back(slow: float) -> None:
    level, _ = fed(noisy(1.0, 0.01, 40))
    assert [level.take(ratio * slow, 1.0) for ratio in (1.0, 1.01, 1.02)] == [0, 0, 3]
    assert level.level() == pytest.approx(1.01 * slow, rel=0.02)
    for ratio in noisy(slow, 0.01, 40):
        level.take(ratio, 1.0)
    assert [level.take(1.01, 1.0), level.take(0.99, 1.0)] == [0, 2]
    assert level.level() == pytest.approx(1.0, rel=0.02)


def test_the_way_back_is_seen_however_much_the_slow_machine_strayed() -> None:
    for seed in range(20):
        level, _ = fed(noisy(2.0, 0.3, 40, seed))
        level.take(1.02, 1.0)
        level.take(0.98, 1.0)
        assert level.level() == pytest.approx(1.0, rel=0.03)


def test_one_sample_changes_nothing_unless_another_law_has_changed() -> None:
    level, _ = fed(noisy(1.0, 0.01, 40))
    assert level.take(3.0, 1.0) == 0
    assert level.level() == pytest.approx(1.0, rel=0.02)
    assert level.join() == 1
    assert level.level() == pytest.approx(3.0, rel=0.02)
    quiet, _ = fed(noisy(1.0, 0.01, 40))
    assert quiet.join() == 0


def test_noise_alone_is_rarely_taken_for_a_change_and_does_not_move_the_level_far() -> None:
    for noise in (0.05, 0.3):
        level = LevelFilter(WEIGHTS, noise)
        changes, levels = 0, []
        for ratio in noisy(1.0, noise, 3000):
            changes += level.take(ratio, 1.0) > 0
            levels.append(level.level())
        assert changes <= 15
        assert np.std(np.log(levels)) < 0.5 * noise


def test_the_spread_is_kept_where_the_level_comes_from_elsewhere() -> None:
    level, _ = fed(noisy(1.0, 0.1, 40))
    before = level.spread()
    level.borrow(2.0)
    assert level.level() == pytest.approx(2.0)
    assert level.spread() == pytest.approx(before, abs=0.08)


def test_it_goes_on_where_it_left_off() -> None:
    ratios = [*noisy(1.0, 0.02, 30), 2.0]
    first, _ = fed(ratios)
    second = LevelFilter(WEIGHTS, 0.02)
    second.restore(json.loads(json.dumps(first.to_dict())))
    assert first.take(2.0, 1.0) == second.take(2.0, 1.0) == 0
    assert first.take(2.0, 1.0) == second.take(2.0, 1.0) == 3
    assert first.to_dict() == second.to_dict()


@pytest.mark.parametrize('damage', [
    {'ratios': []}, {'ratios': [0.0], 'spreads': [1.0]}, {'spreads': [1.0]}, {'sums': [0.0]},
    {'sums': [nan, 0.0]}, {'lengths': [1, 0]}, {'as_profiled': -1}])
def test_nonsense_is_refused(damage: dict[str, object]) -> None:
    level, _ = fed([1.0])
    with pytest.raises(ValueError):
        level.restore({**level.to_dict(), **damage})
