# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The time kept back for the engine's last word on its way to the node."""

import random

from timebill_ros.executor.handover import Handover, LEAST_NS, MOST_NS

MS = 1_000_000


def after(took_ns: list[int]) -> Handover:
    handover = Handover()
    for each in took_ns:
        handover.measured(each)
    return handover


def test_it_is_cautious_until_enough_was_measured() -> None:
    assert after([]).margin_ns == MOST_NS
    assert after([MS] * 48).margin_ns == MOST_NS
    assert after([MS] * 49).margin_ns == MS


def test_it_stays_within_its_limits() -> None:
    assert after([1000] * 200).margin_ns == LEAST_NS
    assert after([30 * MS] * 200).margin_ns == MOST_NS


def test_single_outliers_do_not_count_and_old_ones_are_forgotten() -> None:
    assert after([4 * MS] + [MS] * 199).margin_ns == MS
    assert after([4 * MS] * 200 + [MS] * 200).margin_ns == MS


def test_two_of_a_hundred_take_longer() -> None:
    rng = random.Random(5)
    handover = after([])
    longer = 0
    for count in range(5200):
        took_ns = round(rng.lognormvariate(0.0, 0.3) * MS)
        longer += count >= 200 and took_ns > handover.margin_ns
        handover.measured(took_ns)
    assert 0.01 < longer / 5000 < 0.03
