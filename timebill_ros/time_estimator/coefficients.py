# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The timing laws that a server plans with, and the machine and model they are valid for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property
import json
from math import isfinite
import os
from pathlib import Path
from typing import Any

from timebill_ros.time_estimator.laws import (
    CONSTANT, DECODE_STEP, EVICT, Law, PREFILL, REEVICT)

FROM_PROFILE = 'profile'    # measured by this process
FROM_FILE = 'file'          # loaded from an earlier profile of this key
FROM_TOPIC = 'topic'        # published by the calibration node


class Drift(IntEnum):
    """How far the machine is from its profile (``msg/TimingCoefficients`` DRIFT_*)."""

    NONE = 0
    TRACKED = 1
    HIGH = 2


class CoefficientsError(ValueError):
    """Coefficients that nothing may be planned with; the message says what is wrong."""


class TiersMissing(CoefficientsError):
    """Coefficients of fewer tiers than are loaded: sound, but the others could not be used."""


def key_of(device: str, model: str, dtype: str, engine_version: str) -> str:
    """Return what timings are valid for, as one readable line."""
    return ' | '.join((device, model, dtype, f'engine {engine_version}'))


@dataclass(frozen=True)
class TimingCoefficients:
    """Everything the estimator knows about one machine and model (``msg/TimingCoefficients``)."""

    stamp_ns: int                      # system time at which these values were fitted or last moved
    device: str
    model: str
    dtype: str
    engine_version: str
    laws: tuple[Law, ...]
    worst_quantile: float = 0.99       # the share of samples that each worst_ratio covers
    drift_state: Drift = Drift.NONE
    drift_ratio: float = 1.0           # measured / predicted of the newest queries

    def __post_init__(self) -> None:
        """Refuse what cannot be planned with; raises CoefficientsError that names the field."""
        if not 0.0 < self.worst_quantile <= 1.0:
            raise CoefficientsError(f'worst_quantile {self.worst_quantile} is not in (0, 1]')
        if not (isfinite(self.drift_ratio) and self.drift_ratio > 0.0):
            raise CoefficientsError(f'drift_ratio {self.drift_ratio} is not a positive number')
        names = [law.name for law in self.laws]
        for law, tier, width in names:
            if names.count((law, tier, width)) > 1:
                raise CoefficientsError(
                    f'law {law!r} of tier {tier!r} and width {width} is given twice')
        for needed in (PREFILL, DECODE_STEP):
            if not any(law.law == needed for law in self.laws):
                raise CoefficientsError(f'law {needed!r} is missing')

    @property
    def key(self) -> str:
        """Return the key of ``key_of``."""
        return key_of(self.device, self.model, self.dtype, self.engine_version)

    @property
    def tiers(self) -> tuple[str, ...]:
        """Return the tiers that have a decode-step law, in the order of the laws: best first."""
        return tuple(dict.fromkeys(law.tier for law in self.laws if law.law == DECODE_STEP))

    def law(self, name: str, tier: str, width: int = 1) -> Law:
        """
        Return a law for a tier: its own, else the one of every tier, else zero seconds.

        Of decode steps of ``width`` sequences: the law of that width, else of the next larger one
        measured, else that of the largest, taken to grow in proportion. Of a later eviction that
        was not measured: that of the first. Raises CoefficientsError where a law that planning
        needs is missing.
        """
        found = self._found.get((name, tier, width))
        if found is None:
            found = self._found[name, tier, width] = self._find(name, tier, width)
        return found

    @cached_property
    def _found(self) -> dict[tuple[str, str, int], Law]:
        return {}

    def _find(self, name: str, tier: str, width: int) -> Law:
        of_name = [law for law in self.laws if law.law == name]
        of_tier = ([law for law in of_name if law.tier == tier]
                   or [law for law in of_name if law.tier == ''])
        if not of_tier and name in (PREFILL, DECODE_STEP):
            raise CoefficientsError(f'law {name!r} is missing for tier {tier!r}')
        wide = sorted(of_tier, key=lambda law: law.width)
        for law in wide:
            if law.width >= width:
                return law
        if not wide and name == REEVICT:
            return self.law(EVICT, tier)
        if not wide:
            return Law(name, CONSTANT, (0.0,))
        return replace(wide[-1].scaled(width / wide[-1].width), width=width)

    def with_laws(self, name: str, laws: Sequence[Law]) -> 'TimingCoefficients':
        """Return the same with ``laws`` in place of all that are called ``name``."""
        others = [law for law in self.laws if law.law != name]
        return replace(self, laws=(*others, *laws))

    def require_key(self, key: str) -> None:
        """Raise CoefficientsError, naming both keys, unless these are valid for ``key``."""
        if self.key != key:
            raise CoefficientsError(f'coefficients are for "{self.key}", this server is "{key}"')

    def require_tiers(self, tiers: Sequence[str]) -> None:
        """Raise TiersMissing unless each of the tiers can be planned with."""
        missing = [tier for tier in tiers if tier not in self.tiers]
        if missing and '' not in self.tiers:      # that law would be of every tier
            raise TiersMissing(f'no decode-step law for {", ".join(missing)}')

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON knows them."""
        return {
            'stamp_ns': self.stamp_ns, 'device': self.device, 'model': self.model,
            'dtype': self.dtype, 'engine_version': self.engine_version,
            'worst_quantile': self.worst_quantile, 'drift_state': int(self.drift_state),
            'drift_ratio': self.drift_ratio,
            'laws': [law.to_dict() for law in self.laws]}

    @staticmethod
    def from_dict(fields: dict[str, Any]) -> 'TimingCoefficients':
        """Build them from ``to_dict``; raises CoefficientsError on a wrong field."""
        try:
            return TimingCoefficients(
                int(fields['stamp_ns']), str(fields['device']), str(fields['model']),
                str(fields['dtype']), str(fields['engine_version']),
                tuple(Law.from_dict(law) for law in fields['laws']),
                float(fields['worst_quantile']), Drift(fields['drift_state']),
                float(fields['drift_ratio']))
        except CoefficientsError:
            raise
        except KeyError as error:
            raise CoefficientsError(f'coefficients lack the field {error.args[0]!r}') from error
        except (TypeError, ValueError, AttributeError) as error:
            raise CoefficientsError(f'coefficients cannot be read: {error}') from error


def save(
        path: Path, coefficients: TimingCoefficients,
        raw: dict[str, Any] | None = None) -> None:
    """Write a profile file, in one step: the fit, and beside it the raw samples it came from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {'key': coefficients.key, 'coefficients': coefficients.to_dict(), 'raw': raw or {}}
    partial = path.with_name(f'{path.name}.{os.getpid()}.part')
    partial.write_text(json.dumps(body, indent=1, allow_nan=False) + '\n', encoding='utf-8')
    os.replace(partial, path)


def load(path: Path) -> TimingCoefficients:
    """Read a profile file; raises CoefficientsError if damaged, FileNotFoundError if not there."""
    return TimingCoefficients.from_dict(load_profile(path)['coefficients'])


def load_profile(path: Path) -> dict[str, Any]:
    """Read a whole profile file: key, coefficients and raw samples, as plain dictionaries."""
    try:
        body = json.loads(path.read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CoefficientsError(f'{path} cannot be read: {error.strerror}') from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CoefficientsError(f'{path} is not a profile: {error}') from error
    if not isinstance(body, dict) or not isinstance(body.get('coefficients'), dict):
        raise CoefficientsError(f'{path} is not a profile: it has no coefficients')
    return body
