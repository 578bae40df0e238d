# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Fits of made-up machines whose true law is known."""

from collections.abc import Callable
from dataclasses import replace
import math

import numpy as np
import pytest

from timebill_ros.time_estimator import laws
from timebill_ros.time_estimator.estimator import worst_factor
from timebill_ros.time_estimator.fit import doubts, fit_law, Sample
from timebill_ros.time_estimator.laws import Law

LENGTHS = (16, 48, 144, 430, 1290, 3870)


def samples(
        name: str, true_s: Callable[[float], float], spread: float = 0.0, repeats: int = 4,
        seed: int = 0) -> list[Sample]:
    """Measure a law that is known, with normal noise that cannot make it faster than half."""
    rng = np.random.default_rng(seed)
    return [
        Sample(name, n, true_s(n) * max(0.5, 1.0 + spread * rng.standard_normal()))
        for n in LENGTHS for _ in range(repeats)]


def test_exact_samples_give_the_exact_law() -> None:
    law = fit_law('prefill', samples('prefill', lambda n: 3e-8 * n * n + 2e-3 * n + 0.01))
    assert law.form == 'quadratic'
    assert law.coefficients == pytest.approx((3e-8, 2e-3, 0.01), rel=1e-6)
    assert law.mape < 1e-9 and law.worst_ratio == pytest.approx(1.0) and law.samples == 24


def test_noise_averages_out_and_shows_in_the_worst_ratio() -> None:
    taken = samples('decode_step', lambda n: 1e-5 * n + 0.03, spread=0.05, repeats=40)
    law = fit_law('decode_step', taken)
    assert law.form == 'affine'
    for n in (16, 500, 3000):
        assert law.seconds(n) == pytest.approx(1e-5 * n + 0.03, rel=0.02)
    covered = np.mean([each.seconds <= law.worst_ratio * law.seconds(each.n_tokens)
                       for each in taken])
    assert covered >= 0.99 and law.worst_ratio < 1.25


def test_outliers_do_not_bend_the_law() -> None:
    taken = samples('decode_step', lambda n: 1e-5 * n + 0.03, spread=0.02, repeats=10)
    hit = [Sample(each.law, each.n_tokens, each.seconds * (20.0 if index % 8 == 3 else 1.0))
           for index, each in enumerate(taken)]
    law = fit_law('decode_step', hit)
    for n in (16, 500, 3000):
        assert law.seconds(n) == pytest.approx(1e-5 * n + 0.03, rel=0.03)
    assert law.worst_ratio < 1.2 and law.samples == sum(index % 8 != 3 for index in range(60))


def test_a_machine_that_is_always_disturbed_has_no_outliers() -> None:
    taken = samples('decode_step', lambda n: 0.03, repeats=10)
    hit = [Sample(each.law, each.n_tokens, each.seconds * (2.0 if index % 5 < 2 else 1.0))
           for index, each in enumerate(taken)]
    law = fit_law('decode_step', hit)
    assert law.samples == 60 and law.worst_ratio * law.seconds(100) >= 0.06


def test_no_coefficient_is_negative() -> None:
    law = fit_law('decode_step', samples('decode_step', lambda n: 0.03 - 1e-6 * n))
    assert min(law.coefficients) >= 0.0 and law.slope(100) == 0.0


def test_a_plateau_becomes_lines_and_not_a_slope() -> None:
    taken = samples('decode_step', lambda n: max(0.05, 5e-5 * n), spread=0.005)
    law = fit_law('decode_step', taken)
    assert law.form == 'piecewise' and law.mape < 0.1
    assert law.seconds(16) == pytest.approx(law.seconds(430), rel=0.02)
    assert law.seconds(3870) == pytest.approx(5e-5 * 3870, rel=0.02)


def test_noise_alone_does_not_become_lines() -> None:
    for seed in range(5):
        taken = samples('decode_step', lambda n: 1e-5 * n + 0.03, spread=0.3, seed=seed)
        assert fit_law('decode_step', taken).form == 'affine'
    once = samples('decode_step', lambda n: max(0.05, 5e-5 * n), repeats=1)
    assert fit_law('decode_step', once).form == 'affine'


def test_chunks_behind_a_cached_prefix_give_the_law_of_whole_prompts() -> None:
    def true_s(n: float) -> float:
        return 3e-8 * n * n + 2e-3 * n + 0.01

    whole = [Sample('prefill', n, true_s(n)) for n in (16, 100, 300, 700)]
    chunks = [Sample('prefill', n, true_s(n) - true_s(n - 256), n_done=n - 256)
              for n in (1000, 2000, 4000, 8000)]
    law = fit_law('prefill', whole + chunks)
    assert law.seconds(6000) == pytest.approx(true_s(6000), rel=1e-6)


def test_one_point_is_a_constant_and_none_is_an_error() -> None:
    law = fit_law('overhead', [Sample('overhead', 1, 0.002), Sample('overhead', 1, 0.003)])
    assert law.form == 'constant' and 0.002 <= law.seconds(50) <= 0.003 and math.isnan(law.mape)
    with pytest.raises(ValueError, match='evict'):
        fit_law('evict', [Sample('overhead', 1, 0.002)])
    with pytest.raises(ValueError, match='above 0'):
        fit_law('evict', [Sample('evict', 1, 0.0)])


def chunked_s(chunk: int, stair: int, floor_s: float) -> Callable[[float, float], float]:
    """Return the time of a made-up GPU: chunk by chunk, launch-bound below, tiles above."""
    def seconds(n: float, done: float = 0) -> float:
        total = 0.0
        while done < n:
            m = min(chunk, n - done)
            tiles = math.ceil(m / stair) * stair
            total += max(floor_s, 2e-5 * tiles) + 1e-9 * m * (2 * done + m)
            done += m
        return total
    return seconds


@pytest.mark.parametrize('stair', [1, 128])
def test_a_prefill_in_launch_bound_chunks_gets_a_floor_per_chunk(stair: int) -> None:
    true_s = chunked_s(2048, stair, 0.012)
    lengths = (16, 60, 150, 300, 450, 600, 700, 850, 1000, 1150, 1300, 1500, 1700, 1900, 2048)
    points = [(n, 0) for n in lengths] + [
        (done + m, done) for done, m in ((2048, 2048), (6144, 2048), (14336, 2048), (30720, 2048),
                                         (6144, 200), (14336, 900))]
    rng = np.random.default_rng(5)
    law = fit_law('prefill', [
        Sample('prefill', n, true_s(n, done) * (1.0 + 0.003 * rng.standard_normal()), done)
        for n, done in points for _ in range(5)], chunk_tokens=2048)
    assert law.form == 'chunked' and law.mape < 0.02
    unseen = [int(n) for n in np.exp(rng.uniform(math.log(64), math.log(32768), 60))]
    errors = [abs(law.seconds(n) / true_s(n) - 1.0) for n in unseen]
    assert np.mean(errors) < 0.01
    assert law.seconds(9000, 4096) == pytest.approx(true_s(9000, 4096), rel=0.03)


def test_steps_that_are_slow_together_are_told_from_steps_that_are_not() -> None:
    rng = np.random.default_rng(3)
    for common, alone, low, high in ((0.02, 0.02, 0.3, 0.7), (0.0, 0.03, 0.0, 0.1),
                                     (0.03, 0.0, 0.95, 1.0)):
        taken = [
            Sample('decode_step', n, (1e-5 * n + 0.03) * shared * (1 + alone * rng.normal()), run=r)
            for r, n in enumerate(LENGTHS * 40)
            for shared in [1 + common * rng.normal()] for _ in range(8)]
        assert low <= fit_law('decode_step', taken).correlation <= high
    once = [Sample('decode_step', n, 0.03 + 0.001 * rng.random(), run=r)
            for r, n in enumerate(LENGTHS * 4)]
    assert fit_law('decode_step', once).correlation == 1.0       # nothing can be told


def test_a_law_that_does_not_hold_is_said() -> None:
    wild = [Sample('decode_step', n, 0.01 * (1 + n % 3), run=n) for n in LENGTHS for _ in range(4)]
    law = fit_law('decode_step', wild)
    tame = fit_law('prefill', samples('prefill', lambda n: 2e-3 * n, spread=0.01))
    note, = doubts([law, tame])
    assert 'decode_step' in note and f'{law.mape:.0%}' in note


def test_an_eviction_that_is_off_by_little_beside_its_prefill_is_no_doubt() -> None:
    evict = Law('evict', 'affine', (0.0, 0.01), mape=0.4)
    assert doubts([Law('prefill', 'affine', (0.0, 0.05)), evict])
    assert not doubts([Law('prefill', 'affine', (0.0, 0.1)), evict])


def test_a_law_of_several_sequences_comes_from_their_samples_only() -> None:
    one = samples('decode_step', lambda n: 1e-5 * n + 0.03)
    four = [replace(each, width=4, seconds=2.0 * each.seconds) for each in one]
    law = fit_law('decode_step', one + four, width=4)
    assert law.width == 4 and law.seconds(100) == pytest.approx(0.062)


def test_padded_prompts_get_the_stairs_that_they_are_padded_to() -> None:
    padded = (64, 128, 256, 512)

    def true_s(n: float) -> float:
        if n <= 512:
            return 0.004 + 2e-5 * next(each for each in padded if each >= n)
        return 0.016 + 2e-5 * n + 1e-9 * (math.ceil(n / 512) * 512) ** 2

    lengths = (*padded, 32, 96, 192, 384, 513, 900, 1600, 2800, 5000, 9000, 16000, 32000)
    law = fit_law('prefill', [Sample('prefill', n, true_s(n)) for n in lengths for _ in range(4)],
                  chunk_tokens=40960, padded=padded, attention_stair=512)
    assert law.form == 'chunked' and law.mape < 0.02
    for n in (20, 64, 65, 100, 129, 300, 511, 513, 700, 3000, 20000):
        assert law.seconds(n) == pytest.approx(true_s(n), rel=0.01)
    steps = [Sample('decode_step', n, 2e-8 * n + 0.004) for n in lengths for _ in range(4)]
    assert fit_law('decode_step', steps, chunk_tokens=40960, padded=padded).is_affine


def test_the_last_padded_length_may_lie_beyond_what_was_measured() -> None:
    lengths = {64: 0.005, 100: 0.006, 120: 0.006, 140: 0.009, 150: 0.0091}
    law = fit_law('prefill', [Sample('prefill', n, t) for n, t in lengths.items()],
                  chunk_tokens=4096, padded=(64, 128, 192, 256))
    assert law.seconds(192) == law.seconds(130) == pytest.approx(0.009, rel=0.02)


@pytest.mark.parametrize('slow_share', [0.2, 0.35, 0.65, 0.8])
def test_on_a_machine_of_two_speeds_the_law_is_that_of_the_more_frequent_one(
        slow_share: float) -> None:
    rng = np.random.default_rng(8)
    taken = [
        Sample('decode_step', n, (1e-6 * n + 0.006) * speed * (1.0 + 0.02 * rng.normal()), run=run)
        for run, n in enumerate(LENGTHS * 12)
        for speed in [1.5 if rng.random() < slow_share else 1.0] for _ in range(8)]
    law = fit_law('decode_step', taken)
    ratio = np.median([each.seconds / law.seconds(each.n_tokens) for each in taken])
    assert ratio == pytest.approx(1.0, abs=0.05)


def test_a_law_with_as_many_coefficients_as_runs_does_not_pass_for_exact() -> None:
    """What runs are off is covered by the worst case, however many knots follow them."""
    rng = np.random.default_rng(6)
    lengths = np.geomspace(16, 32768, 14).astype(int)

    def run(n: int, number: int) -> list[Sample]:
        together = 1.0 + 0.02 * rng.normal()
        true_s = (0.01 + 1e-7 * n + (0.004 if n > 128 else 0.0)) * together
        return [Sample('decode_step', n, true_s * (1 + 0.004 * rng.normal()), run=number)
                for _ in range(16)]

    late = 0
    for _ in range(20):
        law = fit_law('decode_step', [each for number, n in enumerate(lengths)
                                      for each in run(int(n), number + 1)])
        factor = worst_factor(law, 16)
        assert len(law.coefficients) > 2
        late += sum(sum(each.seconds for each in run(int(n), 1)) > law.sum_steps(n, 16) * factor
                    for n in lengths)
    assert late <= 0.03 * 20 * len(lengths)


def test_a_run_counts_with_its_mean_so_that_slow_first_steps_are_paid_for() -> None:
    taken = [Sample('decode_step', n, 0.01 * (1.05 if step < 8 else 1.0), run=number + 1)
             for number, n in enumerate(LENGTHS * 3) for step in range(32)]
    law = fit_law('decode_step', taken)
    assert law.sum_steps(500, 32) == pytest.approx(0.01 * (32 + 8 * 0.05))


@pytest.mark.parametrize('seed', range(8))
def test_laws_of_any_samples_never_decrease_however_far_beyond_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    name, chunk = ((laws.DECODE_STEP, 0), (laws.PREFILL, 256), (laws.EVICT, 0))[seed % 3]
    samples = [
        Sample(name, int(n), float(10.0 ** rng.uniform(-4, 1)), run=run)
        for run, n in enumerate(rng.integers(1, rng.choice([20, 400, 4000]), 12), 1)]
    law = fit_law(name, samples, chunk_tokens=chunk)
    found = [law.seconds(n) for n in (1, 16, 300, 4000, 4001, 32768, 10 ** 6)]
    assert all(math.isfinite(each) and each >= 0.0 for each in found) and found == sorted(found)
    assert all(law.seconds(5000, done) >= 0.0 for done in (0, 1, 256, 257, 4999, 5000))
    assert law.worst_ratio >= 1.0 and worst_factor(law, 1) >= worst_factor(law, 50) >= 1.0
