# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
What a tier and an eviction ratio cost in quality, as measured by ``timebill profile --quality``.

The loss of (tier, alpha) is 1 - exp(-D): D is the mean Kullback-Leibler divergence, per response
token, of its next-token distribution from that of the best tier with nothing evicted. 0 is "the
same answer", 1 "nothing in common". A file holds losses at a few eviction ratios and prompt
lengths; between them straight lines, beyond them the last value. More eviction never counts as
better: what measured noise says otherwise is raised to the value before it.
"""

from bisect import bisect_right
from dataclasses import dataclass, field
import json
from math import isfinite
import os
from pathlib import Path
from typing import Any

FORMAT = 1
# Stand-ins where nothing was measured, so that tiers have an order: assumptions, not measurements.
NOMINAL_TIER_LOSS = {'fp32': 0.0, 'bf16': 0.0, 'fp16': 0.0, 'int8': 0.01, 'int4': 0.1}
_NOMINAL_UNKNOWN_TIER_LOSS = 0.1
_NOMINAL_LOSS_PER_ALPHA = 0.25


class QualityError(ValueError):
    """A quality profile that cannot be used; the message says what is wrong."""


@dataclass(frozen=True)
class LossCurve:
    """The loss of one tier for one prompt length as a function of alpha; never decreasing."""

    alphas: tuple[float, ...]       # ascending, the first is 0
    losses: tuple[float, ...]       # in [0, 1]

    def at(self, alpha: float) -> float:
        """Return the loss at an eviction ratio."""
        index = bisect_right(self.alphas, alpha)
        if index == len(self.alphas):
            return self.losses[-1]
        low, high = self.alphas[index - 1], self.alphas[index]
        before, after = self.losses[index - 1], self.losses[index]
        return before + (after - before) * (alpha - low) / (high - low)


@dataclass(frozen=True)
class QualityProfile:
    """The measured losses of one model; ``NOMINAL`` where there are none."""

    model: str                                          # key of the model; '' = of none
    alphas: tuple[float, ...]                           # ascending, the first is 0
    lengths: tuple[int, ...]                            # prompt tokens, ascending
    losses: dict[str, tuple[tuple[float, ...], ...]]    # per tier [length][alpha], in [0, 1]
    source: str = field(default='', compare=False)      # where it was found: see quality_files

    def __post_init__(self) -> None:
        """Refuse what cannot be planned with; raises QualityError that names the field."""
        if not self.alphas or self.alphas[0] != 0.0 or not _ascending(self.alphas):
            raise QualityError(f'alphas {self.alphas} do not ascend from 0')
        if not self.lengths or not _ascending(self.lengths):
            raise QualityError(f'lengths {self.lengths} do not ascend')
        for tier, rows in self.losses.items():
            if len(rows) != len(self.lengths) or any(len(r) != len(self.alphas) for r in rows):
                raise QualityError(f'losses of {tier!r} are not [{len(self.lengths)}]'
                                   f'[{len(self.alphas)}] numbers')
            if not all(isfinite(loss) and 0.0 <= loss <= 1.0 for row in rows for loss in row):
                raise QualityError(f'losses of {tier!r} are not all within 0 to 1')

    @property
    def measured(self) -> bool:
        """Tell whether any of it was measured."""
        return bool(self.losses)

    def loss(self, tier: str, alpha: float, n_prompt: int) -> float:
        """Return the loss of a tier and eviction ratio for a prompt of ``n_prompt`` tokens."""
        return self.curve(tier, n_prompt).at(alpha)

    def curve(self, tier: str, n_prompt: int) -> LossCurve:
        """
        Return the losses of a tier over alpha for one prompt length.

        A tier that was not measured gets the losses of eviction from the first that was, and its
        nominal own.
        """
        rows = self.losses.get(tier)
        if rows is None:
            own = NOMINAL_TIER_LOSS.get(tier, _NOMINAL_UNKNOWN_TIER_LOSS)
            if not self.losses:
                row: tuple[float, ...] = tuple(_NOMINAL_LOSS_PER_ALPHA * a for a in self.alphas)
            else:
                row = self._between(next(iter(self.losses.values())), n_prompt)
            row = tuple(1.0 - (1.0 - own) * (1.0 - loss) for loss in row)
        else:
            row = self._between(rows, n_prompt)
        return LossCurve(self.alphas, _never_decreasing(row))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON knows them."""
        return {'format': FORMAT, 'model': self.model, 'alphas': list(self.alphas),
                'lengths': list(self.lengths),
                'losses': {tier: [list(row) for row in rows]
                           for tier, rows in self.losses.items()}}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> 'QualityProfile':
        """Build it from ``to_dict``; raises QualityError on a wrong field."""
        try:
            if values['format'] != FORMAT:
                raise QualityError(f'format {values["format"]!r} is not {FORMAT}')
            return QualityProfile(
                str(values['model']), tuple(float(alpha) for alpha in values['alphas']),
                tuple(int(length) for length in values['lengths']),
                {str(tier): tuple(tuple(float(loss) for loss in row) for row in rows)
                 for tier, rows in values['losses'].items()})
        except KeyError as error:
            raise QualityError(f'the field {error.args[0]!r} is missing') from error
        except (TypeError, AttributeError, ValueError) as error:
            raise QualityError(str(error)) from error

    def _between(self, rows: tuple[tuple[float, ...], ...], n_prompt: int) -> tuple[float, ...]:
        index = bisect_right(self.lengths, n_prompt)
        if index == 0 or index == len(self.lengths):
            return rows[max(0, index - 1)]
        low, high = self.lengths[index - 1], self.lengths[index]
        share = (n_prompt - low) / (high - low)
        return tuple(a + share * (b - a) for a, b in zip(rows[index - 1], rows[index]))


def load(path: Path) -> QualityProfile:
    """Read a quality profile; raises QualityError if damaged, FileNotFoundError if not there."""
    try:
        body = json.loads(path.read_text(encoding='utf-8'))
        return QualityProfile.from_dict(body['quality'])
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError, KeyError,
            TypeError, QualityError) as error:
        raise QualityError(f'{path} is not a quality profile: {error}') from error


def save(path: Path, profile: QualityProfile, about: dict[str, Any]) -> None:
    """Write a profile file, in one step; ``about`` = how it was measured, and the raw numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.{os.getpid()}.part')
    body = {'quality': profile.to_dict(), 'about': about}
    partial.write_text(json.dumps(body, indent=1, allow_nan=False) + '\n', encoding='utf-8')
    os.replace(partial, path)


def _ascending(values: tuple[float, ...]) -> bool:
    return all(low < high for low, high in zip(values, values[1:]))


def _never_decreasing(row: tuple[float, ...]) -> tuple[float, ...]:
    raised, most = [], 0.0
    for loss in row:
        most = max(most, loss)
        raised.append(most)
    return tuple(raised)


NOMINAL = QualityProfile('', (0.0, 1.0), (1,), {}, 'assumed')
