# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Averages of rows, and how sure they are."""

from collections.abc import Callable, Iterable, Sequence
from math import nan
import random
from typing import Any

from timebill_ros.query import Outcome

Row = dict[str, Any]

_RESAMPLES = 1000
_RESAMPLE_SEED = 1
_CONFIDENCE = 0.95
IN_TIME = (Outcome.COMPLETED.name, Outcome.TRUNCATED.name)


def counted_score(row: Row) -> float:
    """Return a row's score; an answer that is late, skipped or missing counts 0."""
    return float(row['score']) if row['outcome'] in IN_TIME else 0.0


def completed(row: Row) -> bool:
    """Tell whether the answer is whole and came in time."""
    return bool(row['outcome'] == Outcome.COMPLETED.name)


def mean(values: Iterable[float]) -> float:
    """Return the mean; NaN of nothing."""
    several = list(values)
    return sum(several) / len(several) if several else nan


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that ``share`` of all lie at or below; NaN of nothing."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))] if ranked else nan


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean: percentiles over items drawn again."""
    if not values:
        return nan, nan
    drawn = random.Random(_RESAMPLE_SEED)
    means = sorted(mean(drawn.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    tail = round((1.0 - _CONFIDENCE) / 2.0 * _RESAMPLES)
    return means[tail], means[-1 - tail]


def answers(rows: Sequence[Row]) -> dict[str, Any]:
    """Return how many rows, how many in time, and their score with its interval."""
    scores = [counted_score(row) for row in rows]
    low, high = interval(scores)
    return {
        'n': len(rows), 'score': mean(scores), 'score_low': low, 'score_high': high,
        'completed': mean([float(completed(row)) for row in rows]),
        'truncated': mean([float(row['outcome'] == Outcome.TRUNCATED.name) for row in rows]),
        'seconds': mean([row['elapsed_s'] for row in rows])}


def ahead(rows: Sequence[Row], others: Sequence[Row]) -> dict[str, Any]:
    """
    Return by how much ``rows`` score higher than ``others`` on the same questions, and how surely.

    Differences of pairs: what makes a question hard for both is in neither end of the interval.
    """
    theirs = {row['item']: counted_score(row) for row in others}
    pairs = [counted_score(row) - theirs[row['item']] for row in rows if row['item'] in theirs]
    low, high = interval(pairs)
    return {'ahead': mean(pairs), 'ahead_low': low, 'ahead_high': high}


def group_by(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Return the rows of each key, keys in the order in which they come."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups
