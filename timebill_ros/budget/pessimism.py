# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
How far beyond its prediction a response is planned for: the pessimistic factor k, fixed or learned.

Learned, log k follows the quantile of N / N_hat that leaves the share delta beyond it (quantile
tracking, as adaptive conformal inference, arXiv 2106.00170):

    log k <- log k + eta * (1{N > N_W} - delta)

and another track does the same for time: a factor on all worst-case times, raised when decoding
took longer than its worst case, lowered when not.

What that guarantees: summed up, log k can only move within its limits, so over any T queries the
share of errors differs from delta by at most (log k_max - log k_min + eta) / (eta * T), whatever
the queries are, unless a limit holds it: at k = 1 the share may stay below delta, at k_max above.
It is a long-run average over queries: it says nothing about one query, nor that errors are spread
evenly over kinds of prompts.

Censoring. Of a response that we ended (killed, landed, at a planned cap) only a lower bound of N is
known; it counts as an error, although it might have ended within N_W. Queries whose worst case
did not fit from the start are left out, completed ones too: their end says what the budget was.
Cancelled and failed ones count only if they were beyond N_W already.
"""

from dataclasses import asdict, dataclass, field, replace
import json
from math import ceil, exp, inf, isfinite, isnan, log
import os
from pathlib import Path
from typing import Any, Mapping, TYPE_CHECKING

from timebill_ros.query import FinishReason, Outcome, QueryTiming

if TYPE_CHECKING:
    from timebill_ros.budget.planner import PlannerConfig

PESSIMISM = ('fixed', 'learned')
ETA = 0.05              # step of log k
K_MAX = 100.0
TIME_FACTOR_MAX = 10.0
_FORMAT = 1
_ROUNDING = 1e-9        # relative: 1.1 * 160 = 176.00000000000003 is 176 tokens
_ENDED_BY_ITSELF = (
    FinishReason.END_TOKEN, FinishReason.STOP_STRING, FinishReason.CLIENT_CAP,
    FinishReason.SERVER_CAP)
_ENDED_BY_US = (Outcome.TRUNCATED, Outcome.DEADLINE_MISSED)


def worst_length(n_predicted: int, factor: float, cap: int) -> int:
    """
    Return min(ceil(k * predicted length), cap) in tokens, at least 1.

    ``factor`` is the paper's pessimistic factor k >= 1; ``n_predicted`` 0 = no
    predictor ran, then the worst case is the cap.
    """
    if n_predicted < 1:
        return max(1, cap)
    return max(1, min(_times(factor, n_predicted), cap))


def _times(factor: float, n_predicted: int) -> int:
    return ceil(factor * n_predicted * (1.0 - _ROUNDING))


def conformal_start(ratios: Mapping[str, float], rows: int, target: float) -> float | None:
    """
    Return the split-conformal k: the ceil((n + 1)(1 - delta))-th smallest of n validation ratios.

    ``ratios``: quantiles of N / N_hat over the predictor's ``rows`` validation prompts, by
    probability ("0.95"). The next larger one given is taken; None if there is none.
    """
    level = ceil((rows + 1) * (1.0 - target)) / rows if rows > 0 else inf
    enough = [value for name, value in ratios.items() if float(name) >= level]
    return max(1.0, min(enough)) if enough else None


@dataclass
class QuantileTrack:
    """A factor >= 1 that follows a quantile: ``target`` is the share that is to lie beyond it."""

    target: float
    factor: float           # the start, then the newest value
    most: float             # upper limit; the lower one is 1
    count: int = 0          # observations
    errors: int = 0         # of them beyond

    def __post_init__(self) -> None:
        """Refuse what cannot be followed; raises ValueError that names the field."""
        if not 0.0 < self.target < 1.0:
            raise ValueError(f'target {self.target} is not between 0 and 1')
        if not (isfinite(self.factor) and self.count >= self.errors >= 0):
            raise ValueError(f'factor {self.factor}, {self.errors} errors of {self.count}')
        self.factor = min(max(self.factor, 1.0), self.most)

    def observe(self, beyond: bool) -> None:
        """Take one observation that was planned with this track's factor."""
        self.count += 1
        self.errors += beyond
        moved = exp(log(self.factor) + ETA * (float(beyond) - self.target))
        self.factor = min(max(moved, 1.0), self.most)


@dataclass
class Pessimism:
    """Both tracks of one model and predictor; not thread-safe."""

    length: QuantileTrack
    time: QuantileTrack
    key: str = ''                       # of what it was learned from
    notes: list[str] = field(default_factory=list)     # for the operator

    @staticmethod
    def new(target: float, start: float, key: str = '') -> 'Pessimism':
        """Start with k = ``start`` and the time factor 1."""
        return Pessimism(
            QuantileTrack(target, start, K_MAX), QuantileTrack(target, 1.0, TIME_FACTOR_MAX), key)

    def adjust(self, config: 'PlannerConfig') -> 'PlannerConfig':
        """Return the configuration with what was learned in it."""
        return replace(
            config, pessimistic_factor=self.length.factor, time_factor=self.time.factor)

    def observe(
            self, timing: QueryTiming, outcome: Outcome, finish: FinishReason,
            worst_s: float) -> None:
        """
        Take a query that has ended.

        ``worst_s``: what its decode steps could have taken in the worst case, at the length that
        came out and with the time factor in force.
        """
        beyond = length_error(timing, outcome, finish)
        if beyond is not None:
            self.length.observe(beyond)
        if timing.n_generated > 1 and isfinite(worst_s) and not isnan(timing.decode):
            self.time.observe(timing.decode > worst_s)

    def save(self, path: Path) -> None:
        """Write the state, in one step."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f'{path.name}.{os.getpid()}.part')
        body = {'format': _FORMAT, 'key': self.key, 'length': asdict(self.length),
                'time': asdict(self.time)}
        partial.write_text(json.dumps(body, indent=1) + '\n', encoding='utf-8')
        os.replace(partial, path)


def length_error(timing: QueryTiming, outcome: Outcome, finish: FinishReason) -> bool | None:
    """Tell whether a response was longer than planned for; None = nothing is to be learned."""
    if timing.n_predicted < 1 or timing.n_generated < 1 or not timing.feasible:
        return None
    planned = _times(timing.pessimistic_factor, timing.n_predicted)
    if timing.n_generated > planned:
        return True
    if finish in _ENDED_BY_ITSELF:
        return False
    return True if outcome in _ENDED_BY_US else None


def load_pessimism(path: Path, target: float, start: float, key: str) -> Pessimism:
    """
    Return what was learned, or a new start where there is none of this key and target.

    A file that cannot be read is kept aside with the ending ``.bad``, and ``notes`` says so.
    """
    fresh = Pessimism.new(target, start, key)
    try:
        body: Any = json.loads(path.read_text(encoding='utf-8'))
        if body['format'] != _FORMAT:
            raise ValueError(f'format {body["format"]!r} is not {_FORMAT}')
        found = Pessimism(
            QuantileTrack(**body['length']), QuantileTrack(**body['time']), body['key'])
    except FileNotFoundError:
        return fresh
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        aside = path.with_name(path.name + '.bad')
        try:
            os.replace(path, aside)
            fresh.notes.append(f'{path} cannot be read ({error}); it is kept aside as {aside}')
        except OSError as again:
            fresh.notes.append(f'{path} cannot be read ({error}), nor moved ({again})')
        return fresh
    return found if found.key == key and found.length.target == target else fresh
