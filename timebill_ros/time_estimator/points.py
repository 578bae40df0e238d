# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
What a profile measures: for each law, at which lengths.

Lengths lie evenly on a logarithmic scale. Long prompts are not prefilled from their start: one
chunk of theirs is measured, behind as many cached tokens as it would have before it. Of steps of
several sequences, all together hold the longest context that one has alone.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
import random

from timebill_ros.budget.kept import SNAPKV_WINDOW
from timebill_ros.executor.messages import ModelInfo
from timebill_ros.time_estimator import laws
from timebill_ros.time_estimator.fit import Sample
from timebill_ros.time_estimator.laws import Name

LEAST_TOKENS = 2 * SNAPKV_WINDOW    # a shorter context has nothing to evict
MOST_REPEATS = 1000
LEAST_POINTS = 3            # of each law, before the budget may end a profile
_OVERHEAD_TOKENS = (2, 8, 32)
_SHORTEST = 16
_COLD_POINTS = 3
_FRESH_SHARE = 0.03


@dataclass(frozen=True)
class Point:
    """One thing to measure."""

    law: str
    n_tokens: int
    n_done: int = 0
    tier: str = ''
    width: int = 1

    @property
    def name(self) -> Name:
        """Return the name of its law."""
        return self.law, self.tier, self.width


@dataclass(frozen=True)
class Extent:
    """How far and how densely to measure."""

    longest: int            # tokens
    count: int              # points of the most important laws; half as many of the others
    every_width: bool       # of steps; else one sequence and the most only
    padded: tuple[int, ...] = ()    # lengths to which short prompts are filled up


def widths(info: ModelInfo, every: bool) -> list[int]:
    """Return for how many sequences steps have a law: 1, the most, powers of two between."""
    between = [width for width in (2, 4, 8, 16) if width < info.max_batch] if every else []
    return sorted({1, *between, info.max_batch})


def points(info: ModelInfo, extent: Extent, chunk: int) -> list[Point]:
    """Return all points of all laws."""
    longest, count = extent.longest, extent.count
    fewer = max(LEAST_POINTS, count // 2)
    found = [Point(laws.PREFILL, n, done) for n, done in _prefills(extent, chunk)]
    for tier in info.tiers:
        for width in widths(info, extent.every_width):
            dense = count if width == 1 else fewer
            each = evenly(_SHORTEST, max(2 * _SHORTEST, longest // width), dense)
            found += [Point(laws.DECODE_STEP, n, tier=tier, width=width) for n in each]
    found += [Point(law, n) for law in (laws.EVICT, laws.REEVICT)
              for n in evenly(LEAST_TOKENS, longest, fewer)]
    found += [Point(laws.COLD, n) for n in range(1, _COLD_POINTS + 1)]
    return found + [Point(laws.OVERHEAD, n) for n in _OVERHEAD_TOKENS]


def _prefills(extent: Extent, chunk: int) -> list[tuple[int, int]]:
    """
    Return (length, of which done) of prefills.

    Whole prompts of up to a chunk; behind more and more chunks a full one, and a third of one; and
    one prompt of three chunks, so that their sum is checked and not assumed. Where short prompts
    are padded every one of their lengths, and those beyond; only the longest one of those that are
    padded to more than that.
    """
    longest, count = extent.longest, extent.count
    padded = [n for n in extent.padded if n <= longest]
    if padded:
        fewer = max(LEAST_POINTS, 2 * count // 3)
        beyond = [longest] if longest <= extent.padded[-1] else evenly(
            padded[-1] + 1, longest, fewer)
        return [(n, 0) for n in sorted({*padded, *beyond})]
    if longest <= 2 * chunk:
        return [(n, 0) for n in evenly(_SHORTEST, longest, count)]
    found = {(n, 0) for n in evenly(_SHORTEST, chunk, count)}
    behind = evenly(1, longest // chunk - 1, max(LEAST_POINTS, count // 2))
    found |= {((chunks + 1) * chunk, chunks * chunk) for chunks in behind}
    found |= {(chunks * chunk + chunk // 3, chunks * chunk) for chunks in behind[1::2]}
    return sorted(found | {(min(longest, 3 * chunk), 0)})


def evenly(first: int, last: int, count: int) -> list[int]:
    """Return ``count`` lengths, evenly on a logarithmic scale."""
    ratio = (last / first) ** (1.0 / max(1, count - 1))
    return sorted({min(last, round(first * ratio ** i)) for i in range(count)})


def fresh(point: Point, chunk: int, padded: tuple[int, ...], order: random.Random) -> int:
    """
    Return a length beside the point's that was hardly met before, never above it.

    Libraries remember what they worked out for a length, and real prompts have a new one each. Of
    those that are padded to the same length, any; full chunks stay full.
    """
    n, length = point.n_tokens, point.n_tokens - point.n_done
    if point.law not in (laws.PREFILL, laws.DECODE_STEP, laws.EVICT, laws.REEVICT):
        return n
    if point.law == laws.PREFILL and n in padded:
        below = max([each for each in padded if each < n], default=0)
        return order.randint(below + 1, n)
    if point.law == laws.PREFILL and length % chunk == 0:
        return n
    least = n - int(_FRESH_SHARE * length)
    if point.law == laws.PREFILL and padded and n > padded[-1]:
        least = max(least, padded[-1] + 1)
    return order.randint(least, n)


def missing(samples: Iterable[Sample], wanted: Iterable[Point]) -> set[Name]:
    """Return the laws that have not been measured at LEAST_POINTS of their points."""
    seen = {(each.law, each.tier, each.width, each.point, each.n_done) for each in samples}
    counts = Counter(key[:3] for key in seen)
    return {each.name for each in wanted if counts[each.name] < LEAST_POINTS}
