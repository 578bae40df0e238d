# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Buckets, and the upper edges that are predicted."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from timebill_ros.length_predictor.buckets import Buckets
from timebill_ros.length_predictor.distribution import LengthDistribution


def n_hat(buckets, length, n_max):
    """Return the prediction of who is sure of a length."""
    pmf = np.zeros(buckets.cap)
    pmf[length - 1] = 1.0
    return LengthDistribution(pmf, buckets.width).n_hat(n_max)


@given(st.integers(1, 64), st.integers(2, 8192), st.data())
def test_the_edge_of_a_length_covers_it(width, cap, data):
    """N <= N_hat < N + B for every length, and the cap's class says the cap."""
    buckets = Buckets(width, cap)
    length = data.draw(st.integers(1, cap))
    label = int(buckets.label(np.array([length]))[0])
    edge = n_hat(buckets, length, cap)
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
    assert n_hat(buckets, 512, 2048) == 2048
    assert n_hat(buckets, 512, 100) == 100
    assert n_hat(buckets, 41, 44) == 44 and n_hat(buckets, 41, 512) == 48


@pytest.mark.parametrize('length', [0, 513])
def test_lengths_outside_are_refused(length):
    with pytest.raises(ValueError, match='1 .. 512'):
        Buckets(16, 512).label(np.array([length]))
