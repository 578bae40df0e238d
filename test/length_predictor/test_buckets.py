# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Buckets, their upper edges, and the worst case that is planned with."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from timebill_ros.length_predictor.buckets import Buckets, worst_case_tokens


@given(st.integers(1, 64), st.integers(2, 8192), st.data())
def test_the_edge_of_a_length_covers_it(width, cap, data):
    """N <= N_hat < N + B for every length, and the cap's class says the cap."""
    buckets = Buckets(width, cap)
    length = data.draw(st.integers(1, cap))
    label = int(buckets.label(np.array([length]))[0])
    edge = buckets.upper_edge(label, cap)
    assert 1 <= label <= buckets.n_classes
    assert length <= edge < length + width
    assert (label == buckets.n_classes) == (length == cap)


def test_labels_count_from_one_as_the_paper_does():
    """Ceil(N / B), except that the cap is a class of its own."""
    assert Buckets(16, 512).label(np.array([1, 16, 17, 511, 512])).tolist() == [1, 1, 2, 32, 33]
    assert Buckets(16, 8192).n_classes == 513


def test_the_caps_class_follows_the_limit_of_the_query():
    """What lies beyond the trained cap is unknown, so the answer is the query's own limit."""
    buckets = Buckets(16, 512)
    assert buckets.upper_edge(33, 2048) == 2048
    assert buckets.upper_edge(33, 100) == 100
    assert buckets.upper_edge(3, 40) == 40


@pytest.mark.parametrize('length', [0, 513])
def test_lengths_outside_are_refused(length):
    with pytest.raises(ValueError, match='1 .. 512'):
        Buckets(16, 512).label(np.array([length]))


@given(st.floats(1, 8), st.integers(1, 512), st.integers(1, 4096))
def test_worst_case_is_a_ceiling_below_the_limit(k, n_hat, n_max):
    """N_W = min(ceil(k * N_hat), N_max)."""
    worst = worst_case_tokens(k, n_hat, n_max)
    assert worst <= n_max
    assert worst == n_max or k * n_hat - 1e-5 <= worst < k * n_hat + 1


def test_worst_case_does_not_round_up_a_whole_number():
    """1.1 * 160 is 176.00000000000003 in floating point, and 176 tokens."""
    assert worst_case_tokens(1.1, 160, 512) == 176
