# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Quality profiles: interpolation, order, stand-ins, and their files."""

from dataclasses import replace
import json
from pathlib import Path

import pytest

from timebill_ros.budget import quality_files
from timebill_ros.budget.quality import (
    load, NOMINAL, NOMINAL_TIER_LOSS, QualityError, QualityProfile, save)
from timebill_ros.budget.quality_files import find_quality, quality_path

PROFILE = QualityProfile('m', (0.0, 0.5, 0.9), (100, 1000), {
    'bf16': ((0.0, 0.1, 0.4), (0.0, 0.05, 0.2)), 'int8': ((0.02, 0.01, 0.42), (0.02, 0.07, 0.22))})


def test_between_what_was_measured_there_are_straight_lines() -> None:
    assert PROFILE.loss('bf16', 0.0, 100) == 0.0
    assert PROFILE.loss('bf16', 0.25, 100) == pytest.approx(0.05)
    assert PROFILE.loss('bf16', 0.7, 100) == pytest.approx(0.25)
    assert PROFILE.loss('bf16', 0.5, 550) == pytest.approx(0.075)
    assert PROFILE.loss('bf16', 0.95, 10) == 0.4            # beyond it, the last value
    assert PROFILE.loss('bf16', 0.9, 10 ** 6) == pytest.approx(0.2)


def test_more_eviction_never_counts_as_better() -> None:
    losses = [PROFILE.loss('int8', alpha / 100, 100) for alpha in range(96)]
    assert losses == sorted(losses) and losses[0] == losses[50] == 0.02


def test_what_was_not_measured_gets_nominal_losses() -> None:
    assert not NOMINAL.measured and PROFILE.measured
    assert [NOMINAL.loss(tier, 0.0, 50) for tier in ('bf16', 'int8', 'int4')] == [
        pytest.approx(loss) for loss in (0.0, 0.01, 0.1)]
    assert NOMINAL.loss('bf16', 0.9, 50) > NOMINAL.loss('bf16', 0.1, 50) > 0.0
    int4 = NOMINAL_TIER_LOSS['int4']
    assert PROFILE.loss('int4', 0.0, 100) == pytest.approx(int4)
    assert PROFILE.loss('int4', 0.9, 100) == pytest.approx(1 - (1 - int4) * 0.6)


@pytest.mark.parametrize('changes, named', [
    ({'alphas': (0.1, 0.5, 0.9)}, 'alphas'), ({'alphas': (0.0, 0.9, 0.5)}, 'alphas'),
    ({'lengths': (100, 100)}, 'lengths'), ({'lengths': ()}, 'lengths'),
    ({'losses': {'bf16': ((0.0, 0.1, 0.4),)}}, 'bf16'),
    ({'losses': {'bf16': ((0.0, 0.1, 0.4), (0.0, 0.1, 1.4))}}, 'bf16')])
def test_a_profile_that_cannot_be_planned_with_is_refused(changes: dict, named: str) -> None:
    with pytest.raises(QualityError, match=named):
        replace(PROFILE, **changes)


def test_files_are_read_back_and_damage_is_named(tmp_path: Path) -> None:
    path = quality_path(tmp_path, 'm', 'cpu')
    save(path, PROFILE, {'date': 'today'})
    assert load(path) == PROFILE
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    body = json.loads(path.read_text(encoding='utf-8'))
    for damage in ('{', '[]', '{}', json.dumps({'quality': {**body['quality'], 'format': 2}}),
                   json.dumps({'quality': {**body['quality'], 'alphas': ['x']}})):
        path.write_text(damage, encoding='utf-8')
        with pytest.raises(QualityError, match=path.name):
            load(path)


def test_ones_own_measurement_comes_before_the_shipped_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        quality_files, 'config_file', lambda name: tmp_path / name.rpartition('-')[2])
    shipped = tmp_path / 'cpu.json'
    found, note = find_quality(tmp_path, 'key', 'Name', 'cpu')
    assert found is NOMINAL and found.source == 'assumed' and 'profile --quality' in note
    save(shipped, replace(PROFILE, model='Name'), {})
    assert find_quality(tmp_path, 'key', 'Name', 'cpu') == (replace(PROFILE, model='Name'), '')
    own = quality_path(tmp_path, 'key', 'cpu')
    save(own, replace(PROFILE, model='key', lengths=(1, 2)), {})
    assert find_quality(tmp_path, 'key', 'Name', 'cpu')[0].lengths == (1, 2)
    assert find_quality(tmp_path, 'key', 'Name', 'cpu')[0].source == 'own'
    own.write_text('damaged', encoding='utf-8')
    found, note = find_quality(tmp_path, 'key', 'Name', 'cpu')
    assert found.model == 'Name' and found.source == 'shipped' and own.name in note


def test_on_another_kind_of_device_only_evictions_losses_hold(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        quality_files, 'config_file', lambda name: tmp_path / name.rpartition('-')[2])
    save(tmp_path / 'cpu.json', replace(PROFILE, model='Name', losses={
        'fp32': PROFILE.losses['bf16'], 'int4': PROFILE.losses['int8']}), {})
    found, note = find_quality(tmp_path, 'key', 'Name', 'cuda')
    assert 'measured on cpu' in note and found.source == 'other device'
    assert found.loss('bf16', 0.5, 100) == pytest.approx(0.1)
    assert found.loss('int4', 0.0, 100) == pytest.approx(NOMINAL_TIER_LOSS['int4'])


def test_every_shipped_profile_can_be_read() -> None:
    folder = Path(__file__).resolve().parents[2] / 'config' / 'quality'
    for path in folder.glob('*.json'):
        profile = load(path)
        assert profile.measured and path.name.startswith(profile.model.lower())
