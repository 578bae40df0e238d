# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Learns the pessimistic factor and the time factor from the queries that end, if asked to."""

from dataclasses import replace
import logging
from math import nan
from pathlib import Path
from typing import Any, Mapping

from timebill_ros.budget.pessimism import conformal_start, load_pessimism, Pessimism
from timebill_ros.budget.planner import PlannerConfig, Planning
from timebill_ros.executor.messages import Finished
from timebill_ros.paths import name_of
from timebill_ros.query import QueryTiming

_LOG = logging.getLogger(__name__)


class Learning:
    """
    The learned state of one model and predictor, in a file under ``state/``.

    Not thread-safe: the caller locks.
    """

    def __init__(
            self, cache_dir: Path, model_key: str, predictor: str,
            ratios: Mapping[str, Any] | None = None) -> None:
        """
        Prepare; nothing is read before a configuration asks for it.

        ``ratios``: {'n': rows, 'quantiles': {probability: N / N_hat}} of the predictor's
        validation prompts, from its model card.
        """
        self._directory = cache_dir / 'state'
        self._key = f'{model_key} | {predictor or "no predictor"}'
        self._ratios = ratios or {}
        self._state: Pessimism | None = None

    def adjust(self, config: PlannerConfig) -> PlannerConfig:
        """Return what to plan with: the configuration, with what was learned if it says so."""
        if config.pessimism != 'learned':
            was_learned, self._state = self._state is not None, None
            return replace(config, time_factor=1.0) if was_learned else config
        target = config.miss_rate_target
        if self._state is None or self._state.length.target != target:
            self._state = load_pessimism(
                self._path(target), target, self._start(config), self._key)
            for note in self._state.notes:
                _LOG.warning('%s', note)
        return self._state.adjust(config)

    def ended(self, finished: Finished, planning: Planning) -> bool:
        """Learn from a query that has ended; tells whether there is something new to plan with."""
        state, ending = self._state, finished.ending
        if state is None:
            return False
        before = state.length.count + state.time.count
        state.observe(
            finished.timing, ending.outcome, ending.finish_reason,
            worst_decode_s(finished.timing, planning))
        if state.length.count + state.time.count == before:
            return False
        try:
            state.save(self._path(state.length.target))
        except OSError as error:
            _LOG.warning('what was learned cannot be stored and holds for this run: %s', error)
        return True

    def _start(self, config: PlannerConfig) -> float:
        start = conformal_start(
            self._ratios.get('quantiles', {}), int(self._ratios.get('n', 0)),
            config.miss_rate_target)
        return config.pessimistic_factor if start is None else start

    def _path(self, target: float) -> Path:
        return self._directory / f'pessimism-{name_of(f"{self._key} | {target}")}'


def worst_decode_s(timing: QueryTiming, planning: Planning) -> float:
    """Return how long the decode steps that were made could have taken; NaN = there were none."""
    if not timing.stretches:
        return nan
    return planning.config.time_factor * planning.estimator.decoded_s(timing, worst=True)
