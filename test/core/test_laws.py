# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The laws against term-by-term sums and numeric derivatives, and what is refused as a law."""

import json
import math
import random

import pytest

from timebill_ros.time_estimator.laws import Law

QUADRATIC = Law('prefill', 'quadratic', (2e-9, 3e-5, 0.01))
AFFINE = Law('decode_step', 'affine', (1e-6, 0.02))
CONSTANT = Law('overhead', 'constant', (0.003,))
FLOOR = Law('decode_step', 'piecewise', (0.02, 0.02, 0.05), knots=(100.0, 512.0, 4096.0))
ONE_KNOT = Law('evict', 'piecewise', (0.004,), knots=(10.0,))
CHUNKED = Law(
    'prefill', 'chunked', (1e-9, 2e-7, 0.01, 0.01, 0.05),
    (2048.0, 64.0, 256.0, 0.0, 16.0, 512.0, 2048.0))
ALL = (QUADRATIC, AFFINE, CONSTANT, FLOOR, ONE_KNOT)


@pytest.mark.parametrize('law', ALL, ids=lambda law: law.form)
def test_the_sum_is_that_of_the_single_terms(law: Law) -> None:
    rng = random.Random(3)
    for _ in range(300):
        first = rng.choice([0.0, float(rng.randrange(6000)), rng.uniform(0, 6000)])
        steps = rng.choice([0, 1, 2, rng.randrange(5000)])
        terms = math.fsum(law.seconds(first + j) for j in range(steps))
        assert law.sum_steps(first, steps) == pytest.approx(terms, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize('law', ALL, ids=lambda law: law.form)
def test_the_slope_is_the_derivative(law: Law) -> None:
    for n_tokens in (3.0, 57.5, 300.0, 2000.0, 9000.0):
        numeric = (law.seconds(n_tokens + 0.01) - law.seconds(n_tokens - 0.01)) / 0.02
        assert law.slope(n_tokens) == pytest.approx(numeric, rel=1e-5, abs=1e-12)


def test_the_sum_of_an_affine_law_is_the_papers_formula() -> None:
    p, q, n_prompt, alpha, n = 1e-6, 0.02, 1000, 0.25, 77
    paper = (n - 1) * (p * ((1 - alpha) * n_prompt + (n - 2) / 2) + q)
    assert AFFINE.sum_steps((1 - alpha) * n_prompt, n - 1) == pytest.approx(paper)


def test_a_piecewise_law_is_flat_before_its_first_knot_and_goes_on_after_its_last() -> None:
    assert FLOOR.seconds(0) == FLOOR.seconds(511) == 0.02
    assert FLOOR.seconds(4096 + 3584) == pytest.approx(0.08)
    assert AFFINE.is_affine and CONSTANT.is_affine
    assert not FLOOR.is_affine and not QUADRATIC.is_affine


@pytest.mark.parametrize('fields, named', [
    (('prefil', 'affine', (1.0, 1.0)), 'prefil'),
    (('prefill', 'cubic', (1.0,)), 'cubic'),
    (('prefill', 'affine', (1.0,)), 'coefficients'),
    (('prefill', 'affine', (1.0, -1e-9)), '>= 0'),
    (('prefill', 'affine', (1.0, math.nan)), 'finite'),
    (('prefill', 'affine', (1.0, math.inf)), 'finite'),
    (('prefill', 'affine', (1.0, 1e300)), 'exceeds'),
    (('prefill', 'affine', (1.0, 1.0), (), '', math.nan), 'worst_ratio'),
    (('prefill', 'affine', (1.0, 1.0), (), '', 1e308), 'worst_ratio'),
    (('prefill', 'affine', (1.0, 1.0), (3.0,)), 'knots'),
    (('prefill', 'piecewise', (1.0, 2.0), (3.0, 3.0 + 1e-9)), 'ascending'),
    (('prefill', 'piecewise', (1.0, 2.0), (3.0, 1e300)), 'ascending'),
    (('prefill', 'piecewise', (1.0, 1.0), (3.0, 3.0)), 'ascending'),
    (('prefill', 'piecewise', (2.0, 1.0), (3.0, 4.0)), 'decrease'),
    (('prefill', 'piecewise', ()), 'coefficients'),
    (('evict', 'split', (1.0, 1.0, 1.0, 1.0), (9.0,)), 'split'),
    (('evict', 'piecewise', (1.0, 1.0), (9.0, math.nan)), 'ascending'),
    (('prefill', 'chunked', (0.0, 0.0, 1.0), (256.0, 1.0, 1.0, 0.0)), 'coefficients'),
    (('prefill', 'chunked', (0.0, 0.0), (256.0, 1.0, 1.0, 0.0)), 'coefficients'),
    (('prefill', 'chunked', (0.0, 0.0, 1.0), (0.0, 1.0, 1.0, 0.0, 9.0)), 'chunk'),
    (('prefill', 'chunked', (0.0, 0.0, 1.0), (256.0, 1.0, 0.0, 0.0, 9.0)), 'stairs'),
    (('prefill', 'chunked', (0.0, 0.0, 2.0, 1.0), (256.0, 1.0, 1.0, 0.0, 9.0, 10.0)), 'decrease'),
    (('prefill', 'chunked', (0.0, 0.0, 1.0, 2.0), (256.0, 1.0, 1.0, 11.0, 9.0, 10.0)), 'padded'),
    (('prefill', 'affine', (1.0, 1.0), (), '', 1.0, 0.0, 1, 2), 'width'),
    (('decode_step', 'affine', (1.0, 1.0), (), '', 1.0, 0.0, 1, 0), 'width'),
    (('decode_step', 'affine', (1.0, 1.0), (), '', 1.0, 0.0, 1, 1, 1.5), 'correlation'),
    (('prefill', 'constant', (1.0,), (), '', 0.5), 'worst_ratio'),
    (('prefill', 'constant', (1.0,), (), '', math.nan), 'worst_ratio'),
    (('prefill', 'constant', (1.0,), (), '', 1.0, -0.1), 'mape'),
])
def test_an_impossible_law_is_refused_by_name(fields: tuple, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Law(*fields)


def test_a_chunked_law_is_the_sum_of_its_chunks() -> None:
    def chunk_s(m: int, d: int) -> float:
        stairs = math.ceil(m / 64) * 64
        flat = 0.01 if stairs <= 512 else 0.01 + 0.04 * (stairs - 512) / 1536
        attended = math.ceil(m / 256) * 256
        return flat + 1e-9 * attended * (2 * d + attended) + 2e-7 * d

    for done in (0, 100, 2048, 5000):
        for n in (1, 500, 2048, 2049, 4096, 9001):
            starts = range(done, done + n, 2048)
            whole = sum(chunk_s(min(2048, done + n - at), at) for at in starts)
            assert CHUNKED.seconds(done + n, done) == pytest.approx(whole)
    parts_s = CHUNKED.seconds(4096, 2048) + CHUNKED.seconds(2048)
    assert parts_s == pytest.approx(CHUNKED.seconds(4096))
    assert CHUNKED.seconds(700, 700) == 0.0 and not CHUNKED.is_affine
    assert CHUNKED.sum_steps(100, 5) == pytest.approx(
        math.fsum(CHUNKED.seconds(100 + step) for step in range(5)))
    assert CHUNKED.slope(3200) == pytest.approx(2e-9 * 3200 + 0.04 / 1536)
    assert CHUNKED.scaled(2.0).seconds(9001) == pytest.approx(2.0 * CHUNKED.seconds(9001))


def test_short_prompts_that_are_padded_take_what_their_padded_length_takes() -> None:
    law = Law('prefill', 'chunked', (0.0, 0.0, 0.01, 0.02, 0.03, 0.05),
              (4096.0, 1.0, 1.0, 128.0, 64.0, 128.0, 129.0, 4096.0))
    found = [law.seconds(n) for n in (1, 64, 65, 128, 129)]
    assert found == pytest.approx([0.01, 0.01, 0.02, 0.02, 0.03])
    assert law.seconds(2112) == pytest.approx(0.04, rel=0.01)


@pytest.mark.parametrize('law', (*ALL, CHUNKED), ids=lambda law: law.form)
def test_a_law_survives_json(law: Law) -> None:
    again = Law.from_dict(json.loads(json.dumps(law.to_dict(), allow_nan=False)))
    assert again.to_dict() == law.to_dict()


def test_a_scaled_law_takes_that_much_longer_everywhere() -> None:
    for law in ALL:
        for n_tokens in (0, 99, 3000):
            assert law.scaled(1.5).seconds(n_tokens) == pytest.approx(1.5 * law.seconds(n_tokens))
