# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""From a ``Load`` message to an engine that can plan: the model, and the laws of its times."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
import logging
from math import inf
from pathlib import Path
import time

from timebill_ros.budget.planner import PlannerConfig, Planning
from timebill_ros.budget.quality import NOMINAL, QualityProfile
from timebill_ros.budget.quality_files import find_quality
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.errors import EngineError
from timebill_ros.engine.meter import EngineMeter
from timebill_ros.engine.predict_law import with_predict_law
from timebill_ros.executor.learning import Learning
from timebill_ros.executor.messages import Load, ProfileProgress, Ready, RunProfile
from timebill_ros.paths import cache_dir
from timebill_ros.time_estimator.coefficients import (
    CoefficientsError, FROM_FILE, FROM_PROFILE, key_of, save, TiersMissing, TimingCoefficients)
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.fit import doubts
from timebill_ros.time_estimator.profile_file import load_for, profile_path, set_aside
from timebill_ros.time_estimator.profiler import (
    Effort, profile, Progress, START_UP, THOROUGH, THOROUGH_GPU)

_LOG = logging.getLogger(__name__)
_PROFILE_FROM = 0.9     # the share of the start that lies before the profile


class StartFailed(Exception):
    """The engine cannot start; the message is for the operator."""


@dataclass
class Started:
    """An engine that is ready to answer."""

    engine: Engine
    config: PlannerConfig
    coefficients: TimingCoefficients
    source: str             # where the coefficients are from
    load_s: float
    profile_s: float
    quality: QualityProfile = NOMINAL

    def planning(self) -> Planning:
        """Return what its queries are planned with."""
        estimator = TimeEstimator(self.coefficients, self.engine.info.tiers[0])
        return Planning(estimator, self.config, self.source, self.quality)

    def learning(self, directory: Path) -> Learning:
        """Return what is learned about its responses; ``directory`` is the cache directory."""
        predictor = self.engine.predictor
        if predictor is None:
            return Learning(directory, self.engine.info.key, '')
        card = predictor.card
        return Learning(
            directory, self.engine.info.key, f'{card.kind} {card.sha256[:12]}',
            card.metrics.get('ratios'))

    def ready(self) -> Ready:
        """Return the message that says so."""
        return Ready(
            self.engine.info, self.coefficients.to_dict(), self.source, self.load_s,
            self.profile_s)


def start(load: Load, report: Callable[[str, float], None]) -> Started:
    """Load the model, and its stored profile or a new short one; raises StartFailed."""
    began_s = time.perf_counter()
    try:
        config = PlannerConfig.from_dict(load.policy)
        engine = Engine.load(load, lambda what, done: report(what, _PROFILE_FROM * done))
        for note in engine.notes:
            _LOG.warning('%s', note)
        loaded_s = time.perf_counter()
        coefficients, source = stored(engine, load), FROM_FILE
        if coefficients is None:
            coefficients, source = _short_profile(engine, load, report), FROM_PROFILE
        coefficients = with_predict_law(coefficients, engine)
    except (EngineError, ValueError, OSError) as error:
        raise StartFailed(str(error)) from error
    quality, note = find_quality(
        cache_dir(load.cache_dir), engine.info.key, engine.info.name, engine.device.type)
    if note:
        _LOG.info('%s', note)
    return Started(
        engine, config, coefficients, source, loaded_s - began_s,
        time.perf_counter() - loaded_s, quality)


def measure(
        engine: Engine, load: Load, request: RunProfile, report: Callable[[ProfileProgress], None],
        canceled: Callable[[], bool]) -> tuple[TimingCoefficients, Path]:
    """Profile thoroughly, as asked, and store it; raises ProfileCanceled."""
    effort = THOROUGH_GPU if engine.device.type == 'cuda' else THOROUGH
    if request.max_tokens:
        effort = replace(effort, max_tokens=request.max_tokens)
    if request.repeats:
        effort = replace(
            effort, rounds=request.repeats, most_rounds=request.repeats, budget_s=inf)

    def tell(progress: Progress) -> None:
        report(ProfileProgress(progress.law, progress.done, progress.total, progress.left_s))

    return _measure(engine, load, effort, tell, canceled)


def _short_profile(
        engine: Engine, load: Load, report: Callable[[str, float], None]) -> TimingCoefficients:
    def tell(progress: Progress) -> None:
        share = progress.done / progress.total
        report(f'measuring {progress.law}', _PROFILE_FROM + (1.0 - _PROFILE_FROM) * share)

    return _measure(engine, load, START_UP, tell, lambda: False)[0]


def _measure(
        engine: Engine, load: Load, effort: Effort, tell: Callable[[Progress], None],
        canceled: Callable[[], bool]) -> tuple[TimingCoefficients, Path]:
    began_s = time.perf_counter()
    coefficients, samples = profile(EngineMeter(engine), effort, tell, canceled)
    took_s = time.perf_counter() - began_s
    for doubt in doubts(coefficients.laws):
        _LOG.warning('%s', doubt)
    path = profile_path(cache_dir(load.cache_dir), coefficients.key)
    try:
        save(path, coefficients, {
            'profile_s': took_s, 'samples': [asdict(sample) for sample in samples]})
    except OSError as error:
        _LOG.warning('the profile cannot be stored and holds for this run only: %s', error)
    return coefficients, path


def stored(engine: Engine, load: Load) -> TimingCoefficients | None:
    """Return the stored profile of this machine, model and tiers; None = none that will do."""
    info = engine.info
    key = key_of(info.device, info.key, info.dtype, info.engine_version)
    path = profile_path(cache_dir(load.cache_dir), key)
    try:
        coefficients = load_for(path, key)
        coefficients.require_tiers(info.tiers)
        return coefficients
    except FileNotFoundError:
        return None
    except TiersMissing as error:
        _LOG.info('%s: %s; a new profile is made', path, error)
        return None
    except CoefficientsError as error:
        _LOG.warning('%s; it is %s, and a new one made', error, set_aside(path))
        return None
