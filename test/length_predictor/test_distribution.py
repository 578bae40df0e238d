# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Distributions over lengths: quantiles, calibration, remaining length, measures."""

import numpy as np
import pytest

from timebill_ros.length_predictor.buckets import Buckets
from timebill_ros.length_predictor.distribution import (
    Calibration,
    fit_calibration,
    LengthDistribution,
    randomised_pit,
    within_classes,
)
from timebill_ros.length_predictor.metrics import evaluate_distribution, pinball, spearman

BUCKETS = Buckets(16, 128)


def _truth(rows, seed=0):
    """Draw class probabilities per row, and a length from each."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(BUCKETS.n_classes, 0.5), rows)
    within = within_classes(BUCKETS, rng.integers(1, 129, 5000).tolist())
    pmf = Calibration(BUCKETS, within, np.linspace(0, 1, 3)).raw_pmf(probabilities)
    lengths = np.array([rng.choice(128, p=row / row.sum()) + 1 for row in pmf])
    return probabilities, within, lengths


def test_quantiles_of_a_known_distribution():
    pmf = np.zeros(64)
    pmf[[9, 19, 63]] = 0.5, 0.4, 0.1
    distribution = LengthDistribution(pmf, 16)
    assert [distribution.quantile(q) for q in (0.1, 0.5, 0.9, 0.95)] == [10, 10, 20, 64]
    assert distribution.quantile(0.95, n_max=512) == 512      # beyond its cap nothing is known
    assert distribution.quantile(0.9, n_max=15) == 15
    assert distribution.n_hat(512) == 16
    assert distribution.mean() == pytest.approx(0.5 * 10 + 0.4 * 20 + 0.1 * 64)


def test_remaining_length_becomes_the_whole_length():
    pmf = np.zeros(64)
    pmf[[4, 60]] = 0.75, 0.25
    whole = LengthDistribution(pmf, 16).shift(10)
    assert whole.pmf[14] == 0.75 and whole.pmf[63] == 0.25
    assert whole.pmf.sum() == pytest.approx(1)


@pytest.mark.parametrize('n_generated', [63, 64, 65, 1000])
def test_a_response_may_outgrow_what_the_distribution_knows(n_generated):
    pmf = np.zeros(64)
    pmf[[4, 60]] = 0.75, 0.25
    whole = LengthDistribution(pmf, 16).shift(n_generated)
    assert whole.pmf[63] == 1.0 and whole.pmf[:63].sum() == 0.0
    assert whole.quantiles([0.1, 0.9], 4000) == ((0.1, 4000), (0.9, 4000))
    assert whole.n_left(n_generated, 4000) == 0         # none can be told


def test_expected_tokens_to_come():
    pmf = np.zeros(64)
    pmf[[9, 63]] = 0.6, 0.4
    distribution = LengthDistribution(pmf, 16)
    assert distribution.mean() == pytest.approx(31.6)
    assert [distribution.n_left(n, 4000) for n in (2, 31, 40)] == [30, 1, 1]
    assert distribution.n_left(2, 20) == 18             # the client's cap ends it
    likely_beyond = LengthDistribution(pmf[::-1].copy(), 16)
    likely_beyond.pmf[[0, 54, 63]] = 0.4, 0.0, 0.6
    assert likely_beyond.n_left(10, 64) == 29           # 0.4 * 1 + 0.6 * 64 - 10
    assert likely_beyond.n_left(10, 65) == 0


def test_calibration_mends_overconfident_probabilities():
    """Sharpened probabilities are far off; the conformal map learnt on other rows mends them."""
    probabilities, within, lengths = _truth(8000)
    sharp = probabilities ** 2 / (probabilities ** 2).sum(1, keepdims=True)
    plain = Calibration(BUCKETS, within, np.linspace(0, 1, 101))
    before = randomised_pit(plain.pmf(sharp[4000:]), lengths[4000:])
    mended = fit_calibration(BUCKETS, within, sharp[:4000], lengths[:4000])
    after = randomised_pit(mended.pmf(sharp[4000:]), lengths[4000:])
    assert (before < 0.95).mean() < 0.93
    assert (after < 0.95).mean() == pytest.approx(0.95, abs=0.015)
    assert mended.pmf(sharp).min() >= 0
    np.testing.assert_allclose(mended.pmf(sharp).sum(1), 1)


def test_measures_of_a_calibrated_forecast():
    """The truth's own distribution covers what it says, also by source."""
    probabilities, within, lengths = _truth(6000, seed=2)
    pmf = Calibration(BUCKETS, within, np.linspace(0, 1, 101)).pmf(probabilities)
    result = evaluate_distribution(pmf, lengths, ['a', 'b'] * 3000)
    assert result['pit_below_0.95'] == pytest.approx(0.95, abs=0.012)
    assert set(result['pit_below_0.95_by_source']) == {'a', 'b'}
    assert result['coverage']['0.9'] >= 0.89
    assert 0 < result['r2'] < 1 and result['spearman'] > 0.4
    assert result['mae'] <= result['mae_upper_edge'] + 16


def test_known_values_of_the_measures():
    """Spearman with ties and the pinball loss, by hand."""
    assert spearman(np.array([1, 2, 2, 4]), np.array([1, 3, 2, 4])) == pytest.approx(0.9486833)
    assert spearman(np.array([1, 1]), np.array([1, 2])) == 0.0
    assert pinball(np.array([10, 10]), np.array([20, 5]), 0.9) == pytest.approx((9 + 0.5) / 2)
