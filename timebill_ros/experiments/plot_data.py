# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What there is to draw: a stored profile with its raw samples, or the records of queries."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
import json
from math import nan
from pathlib import Path
from typing import Any

from timebill_ros.query import Outcome, QueryTiming
from timebill_ros.time_estimator.coefficients import load_profile, TimingCoefficients
from timebill_ros.time_estimator.fit import Sample
from timebill_ros.time_estimator.laws import RECOVERY
from timebill_ros.time_estimator.recovery import settled

TIMING_TYPE = 'timebill_ros/msg/QueryTiming'
_BAG_SUFFIXES = ('.mcap', '.db3')


class NothingToDraw(ValueError):
    """A file that cannot be drawn; the message says why."""


@dataclass(frozen=True)
class Profile:
    """A fit and what it was fitted to."""

    coefficients: TimingCoefficients
    samples: tuple[Sample, ...]     # of decode steps without what RECOVERY says


@dataclass(frozen=True)
class Record:
    """What is known of one query after its end."""

    outcome: str        # name of an Outcome
    timing: QueryTiming


def read(path: Path) -> Profile | list[Record]:
    """
    Read a profile, a file of JSON lines (`timebill ask --json`, `timebill record`) or a rosbag2.

    Raises NothingToDraw, FileNotFoundError, or ImportError for a bag without the package rosbags.
    """
    if path.is_dir() or path.suffix in _BAG_SUFFIXES:
        records = list(_bag_records(path))
    else:
        profile = _profile(path)
        if profile is not None:
            return profile
        records = list(_line_records(path))
    if not records:
        raise NothingToDraw(f'{path} holds no {TIMING_TYPE}')
    return records


def _profile(path: Path) -> Profile | None:
    """Return the profile in a file; None if the file is something else."""
    try:
        body = load_profile(path)
    except ValueError:
        return None
    raw = body.get('raw') or {}
    try:
        samples = [Sample(**each) for each in raw.get('samples', ())]
        coefficients = TimingCoefficients.from_dict(body['coefficients'])
        recoveries = {law.tier: law for law in coefficients.laws if law.law == RECOVERY}
        return Profile(coefficients, tuple(settled(samples, recoveries)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise NothingToDraw(f'{path} is a damaged profile: {error!r}') from error


def _line_records(path: Path) -> Iterator[Record]:
    with path.open(encoding='utf-8') as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield record_of(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise NothingToDraw(
                    f'{path}, line {number}, is no record of a query: {error}') from error


def record_of(values: dict[str, Any]) -> Record:
    """Build a record from the fields of a QueryTiming message; null is not-a-number."""
    if 'n_prompt' not in values:
        raise KeyError('n_prompt is missing')
    timing = QueryTiming()
    for each in fields(timing):
        if each.name in values:
            value = values[each.name]
            setattr(timing, each.name, nan if value is None else value)
    outcome = values['outcome']
    return Record(outcome if isinstance(outcome, str) else Outcome(outcome).name, timing)


def _bag_records(path: Path) -> Iterator[Record]:
    # Imported here: pure Python, but not among Debian's packages.
    from rosbags.highlevel import AnyReader, AnyReaderError
    try:
        with AnyReader([path]) as reader:
            wanted = [each for each in reader.connections if each.msgtype == TIMING_TYPE]
            for connection, _, data in reader.messages(wanted):
                message = reader.deserialize(data, connection.msgtype)
                yield record_of({
                    each.name: _plain(getattr(message, each.name)) for each in fields(QueryTiming)
                    if hasattr(message, each.name)} | {'outcome': int(message.outcome)})
    except AnyReaderError as error:
        raise NothingToDraw(f'{path} is no rosbag2: {error}') from error


def _plain(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else list(value)
