# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Profile files: one per key, and none that does not belong is used."""

from dataclasses import replace
from pathlib import Path

import pytest

from timebill_ros.time_estimator.coefficients import (
    CoefficientsError, save, TiersMissing, TimingCoefficients)
from timebill_ros.time_estimator.laws import AFFINE, DECODE_STEP, Law, PREFILL, QUADRATIC
from timebill_ros.time_estimator.profile_file import load_for, profile_path, set_aside

COEFFICIENTS = TimingCoefficients(1, 'cpu of this robot', 'model', 'float32', '1', (
    Law(PREFILL, QUADRATIC, (0.0, 1e-3, 0.0), mape=0.05),
    Law(DECODE_STEP, AFFINE, (0.0, 0.02), mape=0.05)))


def test_a_profile_comes_back_for_its_key(tmp_path: Path) -> None:
    path = profile_path(tmp_path, COEFFICIENTS.key)
    save(path, COEFFICIENTS)
    assert load_for(path, COEFFICIENTS.key) == COEFFICIENTS


def test_a_tier_without_a_law_is_named() -> None:
    COEFFICIENTS.require_tiers(['fp32', 'int4'])    # its law is of every tier
    fp32 = replace(COEFFICIENTS, laws=(
        COEFFICIENTS.laws[0], replace(COEFFICIENTS.laws[1], tier='fp32')))
    fp32.require_tiers(['fp32'])
    with pytest.raises(TiersMissing, match='int4'):
        fp32.require_tiers(['fp32', 'int4'])


@pytest.mark.parametrize('field', ['device', 'model', 'dtype', 'engine_version'])
def test_every_part_of_the_key_has_a_file_of_its_own(tmp_path: Path, field: str) -> None:
    other = replace(COEFFICIENTS, **{field: 'another'})
    assert profile_path(tmp_path, other.key) != profile_path(tmp_path, COEFFICIENTS.key)


@pytest.mark.parametrize('field', ['device', 'model', 'dtype', 'engine_version'])
def test_a_foreign_profile_is_refused_with_both_keys(tmp_path: Path, field: str) -> None:
    foreign = replace(COEFFICIENTS, **{field: 'another'})
    path = profile_path(tmp_path, COEFFICIENTS.key)
    save(path, foreign)
    with pytest.raises(CoefficientsError) as refusal:
        load_for(path, COEFFICIENTS.key)
    assert all(text in str(refusal.value) for text in (str(path), foreign.key, COEFFICIENTS.key))


@pytest.mark.parametrize('content', [
    b'', b'\xff\xfe', b'{', b'[]', b'{"coefficients": {}}', b'{"coefficients": {"laws": 3}}'])
def test_a_damaged_profile_is_refused_and_kept_aside(tmp_path: Path, content: bytes) -> None:
    path = profile_path(tmp_path, COEFFICIENTS.key)
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(CoefficientsError, match='cannot be used'):
        load_for(path, COEFFICIENTS.key)
    aside = path.with_name(path.name + '.bad')
    assert set_aside(path) == f'kept aside as {aside}' and aside.read_bytes() == content
    with pytest.raises(FileNotFoundError):
        load_for(path, COEFFICIENTS.key)


def test_a_profile_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    path = profile_path(tmp_path, COEFFICIENTS.key)
    path.mkdir(parents=True)
    with pytest.raises(CoefficientsError, match='cannot be read: Is a directory'):
        load_for(path, COEFFICIENTS.key)
    (tmp_path / 'file').touch()
    beneath = profile_path(tmp_path / 'file', COEFFICIENTS.key)
    with pytest.raises(CoefficientsError, match='cannot be read: Not a directory'):
        load_for(beneath, COEFFICIENTS.key)
    assert set_aside(beneath) == 'left where it is (Not a directory)'
