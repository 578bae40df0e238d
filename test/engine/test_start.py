# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""When a stored profile will do for a start, and when it will not."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from timebill_ros.executor.messages import Load
from timebill_ros.executor.start import stored
from timebill_ros.time_estimator.coefficients import save, TimingCoefficients
from timebill_ros.time_estimator.laws import AFFINE, DECODE_STEP, Law, PREFILL
from timebill_ros.time_estimator.profile_file import profile_path

TIERS = ['fp32', 'int4']
LAWS = (Law(PREFILL, AFFINE, (1e-4, 0.0)), *(
    Law(DECODE_STEP, AFFINE, (0.0, 0.01), tier=tier) for tier in TIERS))
PROFILE = TimingCoefficients(1, 'cpu of this robot', 'model', 'float32', '1', LAWS)


def test_a_stored_profile_of_fewer_tiers_will_not_do(tmp_path: Path) -> None:
    engine = SimpleNamespace(info=SimpleNamespace(
        device=PROFILE.device, key=PROFILE.model, dtype=PROFILE.dtype,
        engine_version=PROFILE.engine_version, tiers=TIERS))
    load = Load('model', 'cpu', tiers=TIERS, cache_dir=str(tmp_path))
    path = profile_path(tmp_path, PROFILE.key)
    assert stored(engine, load) is None
    save(path, PROFILE)
    assert stored(engine, load) == PROFILE
    save(path, replace(PROFILE, laws=LAWS[:2]))
    assert stored(engine, load) is None     # so that a start measures both
    assert path.is_file()                   # but nothing is wrong with the file
    engine.info.tiers = TIERS[:1]
    assert stored(engine, load) is not None
