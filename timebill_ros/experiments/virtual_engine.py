# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
An engine that computes nothing, on a clock that its work alone moves.

What a unit of work takes is what the laws say, times a factor.
"""

from collections.abc import Callable
from dataclasses import dataclass
import heapq
from itertools import count

from timebill_ros.budget.kept import kept_tokens
from timebill_ros.query import NS_PER_S, Sampling
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import Behind, EVICT, RECOVERY, REEVICT

END, WORD = 0, 1                    # the tokens that a virtual model knows
_ASKED_NS = 2_000_000               # before a step's end, whether the next may go ahead (CUDA's)
Factor = Callable[[str, int], float]    # (law's name, batch width) -> measured / law


def as_the_laws_say(law: str, width: int) -> float:
    """Return 1: what is measured is what is predicted."""
    return 1.0


class VirtualClock:
    """A clock that stands still but for the work done, and wakes what is due meanwhile."""

    def __init__(self) -> None:
        """Start at zero with nothing due."""
        self.now_ns = 0
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._number = count()

    def __call__(self) -> int:
        """Return the time in nanoseconds."""
        return self.now_ns

    def at(self, due_ns: int, do: Callable[[], None]) -> None:
        """Have ``do`` called once the clock gets there."""
        heapq.heappush(self._due, (due_ns, next(self._number), do))

    def advance(self, span_ns: int) -> None:
        """Let time pass, and what is due happen in it."""
        end_ns = self.now_ns + span_ns
        while self._due and self._due[0][0] <= end_ns:
            due_ns, _, do = heapq.heappop(self._due)
            self.now_ns = max(self.now_ns, due_ns)
            do()
        self.now_ns = max(self.now_ns, end_ns)

    def skip(self) -> bool:
        """Go on to what is due next; False = nothing is."""
        if not self._due:
            return False
        self.advance(max(0, self._due[0][0] - self.now_ns))
        return True


@dataclass
class _Info:
    tiers: list[str]
    max_batch: int


@dataclass(eq=False)
class _Sequence:
    slot: int
    n_prompt: int
    n_response: int             # tokens, the end token included
    n_prefilled: int = 0
    n_cached: int = 0
    n_generated: int = 0
    evicted: bool = False
    closed: bool = False


@dataclass
class _Text:
    """The text side of a response without text."""

    text: str = ''
    stopped: bool = False

    def push(self, token: int) -> str:
        self.text += '.'
        return '.'

    def finish(self) -> str:
        return ''


class VirtualEngine:
    """Has the calls of ``Engine`` that a query makes; each lets the clock run on."""

    end_ids = (END,)
    predictor = None        # nothing predicts the length of a virtual response

    def __init__(self, clock: VirtualClock, estimator: TimeEstimator, n_slots: int,
                 chunk_tokens: int, factor: Factor = as_the_laws_say) -> None:
        """Be as fast as ``estimator`` says, times ``factor``."""
        self.info = _Info(list(estimator.tiers), n_slots)
        self.chunk_tokens = chunk_tokens
        self.busy_ns = 0
        self.beside_s = 0.0     # what the newest step has the host do beside the model
        self._clock = clock
        self._estimator = estimator
        self._factor = factor
        self._free = list(range(n_slots))
        self._ahead: tuple[list[_Sequence], str] | None = None
        self._ahead_until_ns, self._step_factor = 0, 1.0
        self._hot = Behind(0)   # the longest prompt of late, and the steps since

    @property
    def n_open(self) -> int:
        """Slots in use."""
        return self.info.max_batch - len(self._free)

    def check_device(self) -> None:
        """Find nothing wrong."""

    def response_text(self, stop: list[str]) -> _Text:
        """Return an empty response."""
        return _Text()

    def open_sequence(self, ids: list[int], capacity: int, sampling: Sampling) -> _Sequence:
        """Take a slot; the first of ``ids`` is the length of the response."""
        return _Sequence(self._free.pop(), len(ids), ids[0])

    def begin_prefill(self, seq: _Sequence) -> None:
        """Begin when asked to."""

    def prefill_chunk(self, seq: _Sequence) -> bool:
        """Let a chunk's time pass."""
        until = min(seq.n_prompt, seq.n_prefilled + self.chunk_tokens)
        seconds = self._estimator.prefill_s(until, False, seq.n_prefilled)
        self._pass(self._factor('prefill', 1) * seconds)
        seq.n_prefilled = seq.n_cached = until
        if until >= self._hot.n_prompt or self._hot.done >= self._recovered:
            self._hot = Behind(until)
        return until == seq.n_prompt

    def next_token(self, seq: _Sequence) -> int:
        """Return the first token."""
        return self._token(seq)

    def prompt_state(self, seq: _Sequence) -> None:
        """Return no hidden state: there is no model."""

    def evict(self, seq: _Sequence, alpha: float) -> int:
        """Let an eviction's time pass."""
        law = self._estimator.law(REEVICT if seq.evicted else EVICT)
        if seq.evicted and law.samples == 0:    # of later ones nothing is known
            law = self._estimator.law(EVICT)
        self._pass(self._factor('evict', 1) * law.seconds(seq.n_prompt))
        seq.evicted = True
        seq.n_cached = kept_tokens(seq.n_prompt, alpha)
        return seq.n_cached

    def decode_step(self, seqs: list[_Sequence], tier: str = '',
                    goes_on: Callable[[bool], bool] = lambda over: False) -> list[int]:
        """Let a step's time pass, or what is left of it, and begin with the next if it goes on."""
        if not self.is_ahead(seqs, tier):
            self.settle()
            self._begin(seqs, tier)
        self._clock.advance(max(0, self.ahead_ns - _ASKED_NS))
        early = goes_on(False)
        self.settle()
        for seq in seqs:
            seq.n_cached += 1
        tokens = [self._token(seq) for seq in seqs]
        estimator, width = self._estimator, len(seqs)
        self.beside_s = self._step_factor * width * (
            estimator.overhead_s(2) - estimator.overhead_s(1))
        if early or (END not in tokens and goes_on(True)):
            self._begin(seqs, tier)
        return tokens

    @property
    def ahead(self) -> bool:
        """Tell whether a step is under way that nobody has asked for yet."""
        return self._ahead is not None

    def is_ahead(self, seqs: list[_Sequence], tier: str) -> bool:
        """Tell whether that is this step."""
        return self._ahead == (seqs, tier)

    @property
    def ahead_ns(self) -> int:
        """How long that one still takes."""
        return max(0, self._ahead_until_ns - self._clock()) if self.ahead else 0

    def settle(self) -> None:
        """Let that one come to its end, for nothing."""
        left_ns, self._ahead = self.ahead_ns, None
        self._clock.advance(left_ns)

    def _begin(self, seqs: list[_Sequence], tier: str) -> None:
        """Have a step under way."""
        n_cached, width = sum(seq.n_cached for seq in seqs) / len(seqs), len(seqs)
        self._step_factor = self._factor('decode_step', width)
        seconds = self._estimator.decode_s(n_cached, 1, False, tier, width)
        seconds += max(self._recovery_s(seq, tier) for seq in seqs)
        self._hot = self._hot._replace(done=self._hot.done + 1)
        self._ahead = list(seqs), tier
        span_ns = int(self._step_factor * seconds * NS_PER_S)
        self.busy_ns += span_ns
        self._ahead_until_ns = self._clock() + span_ns

    def _recovery_s(self, seq: _Sequence, tier: str) -> float:
        """Return what the device's clock and, of a first step, its setting up cost on top."""
        law, hot, own = self._estimator.law(RECOVERY, tier), self._hot, Behind(
            0, seq.n_generated - 1)
        return law.behind(hot, 1) - law.behind(Behind(0, hot.done), 1) + law.behind(own, 1)

    @property
    def _recovered(self) -> float:
        """The steps after which the clock is as before."""
        return max(
            self._estimator.law(RECOVERY, tier).lasts_steps for tier in self.info.tiers)

    def close(self, seq: _Sequence) -> None:
        """Give the slot back."""
        if not seq.closed:
            seq.closed = True
            self._free.append(seq.slot)

    def _token(self, seq: _Sequence) -> int:
        seq.n_generated += 1
        return END if seq.n_generated >= seq.n_response else WORD

    def _pass(self, seconds: float) -> None:
        span_ns = int(seconds * NS_PER_S)
        self.busy_ns += span_ns
        self._clock.advance(span_ns)
