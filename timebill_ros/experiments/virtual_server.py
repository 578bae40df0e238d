# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The server on a virtual clock: real scheduler, planner and queries, an engine of laws.

What a unit of work takes is what the laws say, times a factor; nothing is computed. Goals and
cancels arrive in the middle of units, as they do from the talk thread.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
import heapq
from itertools import count
from typing import Any

from timebill_ros.budget.admission import needs
from timebill_ros.budget.kept import kept_tokens
from timebill_ros.budget.planner import PlanInputs, Planning
from timebill_ros.engine.endings import DROPPED
from timebill_ros.engine.pipeline import Message, tiers_to_plan
from timebill_ros.executor.demand import Pace
from timebill_ros.executor.dispatcher import Dispatcher
from timebill_ros.executor.job import Job
from timebill_ros.executor.messages import Finished
from timebill_ros.executor.scheduler import Scheduler
from timebill_ros.query import Query, QueryTiming, Sampling
from timebill_ros.time_estimator.estimator import TimeEstimator

END, WORD = 0, 1                    # the tokens that a virtual model knows
_NS = 1_000_000_000
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


@dataclass
class _Sequence:
    slot: int
    n_prompt: int
    n_response: int             # tokens, the end token included
    n_prefilled: int = 0
    n_cached: int = 0
    n_generated: int = 0
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
        self._clock = clock
        self._estimator = estimator
        self._factor = factor
        self._free = list(range(n_slots))

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

    def prefill_chunk(self, seq: _Sequence) -> bool:
        """Let a chunk's time pass."""
        until = min(seq.n_prompt, seq.n_prefilled + self.chunk_tokens)
        self._pass('prefill', self._estimator.prefill_s(until, False, seq.n_prefilled), 1)
        seq.n_prefilled = seq.n_cached = until
        return until == seq.n_prompt

    def next_token(self, seq: _Sequence) -> int:
        """Return the first token."""
        return self._token(seq)

    def prompt_state(self, seq: _Sequence) -> None:
        """Return no hidden state: there is no model."""

    def evict(self, seq: _Sequence, alpha: float) -> int:
        """Let an eviction's time pass."""
        self._pass('evict', self._estimator.evict_s(seq.n_prompt), 1)
        seq.n_cached = kept_tokens(seq.n_prompt, alpha)
        return seq.n_cached

    def decode_step(self, seqs: list[_Sequence], tier: str = '') -> list[int]:
        """Let a step's time pass, with what is beside the model."""
        n_cached = sum(seq.n_cached for seq in seqs) / len(seqs)
        estimator, width = self._estimator, len(seqs)
        seconds = estimator.decode_s(n_cached, 1, False, tier, width)
        seconds += width * (estimator.overhead_s(2) - estimator.overhead_s(1))
        self._pass('decode_step', seconds, width)
        for seq in seqs:
            seq.n_cached += 1
        return [self._token(seq) for seq in seqs]

    def close(self, seq: _Sequence) -> None:
        """Give the slot back."""
        if not seq.closed:
            seq.closed = True
            self._free.append(seq.slot)

    def _token(self, seq: _Sequence) -> int:
        seq.n_generated += 1
        return END if seq.n_generated >= seq.n_response else WORD

    def _pass(self, law: str, seconds: float, width: int) -> None:
        span_ns = int(seconds * self._factor(law, width) * _NS)
        self.busy_ns += span_ns
        self._clock.advance(span_ns)


@dataclass
class VirtualServer:
    """The executor of the engine process over a virtual engine."""

    planning: Planning
    n_slots: int
    chunk_tokens: int
    factor: Factor = as_the_laws_say
    scheduler_class: type[Any] = Scheduler
    clock: VirtualClock = field(default_factory=VirtualClock)
    ended: dict[str, Finished] = field(default_factory=dict)
    ended_ns: dict[str, int] = field(default_factory=dict)
    on_message: Callable[[Message], None] = lambda message: None

    def __post_init__(self) -> None:
        """Put the parts together."""
        self.engine: Any = VirtualEngine(
            self.clock, self.planning.estimator, self.n_slots, self.chunk_tokens, self.factor)
        self.scheduler = self.scheduler_class(Pace(self.planning), self.n_slots)
        self.dispatcher = Dispatcher(self.engine, self.scheduler, nullcontext(), self.clock)

    def submit(self, query: Query, n_prompt: int, length: int) -> None:
        """Take a query whose response has ``length`` tokens, its end token included."""
        cap = query.max_new_tokens
        estimator, config = self.planning.estimator, self.planning.config
        inputs = PlanInputs(
            n_prompt, cap, budget_left_s=0.0, alpha_max=query.alpha_max,
            tiers=tiers_to_plan(self.planning, self.engine.info.tiers, query.min_tier))
        job = Job(query, needs(inputs, estimator, config, self.chunk_tokens),
                  [length] * n_prompt, cap)
        ending = self.scheduler.submit(job, self.clock())
        if ending is not None:
            self._take([Finished(query.query_id, ending, '', QueryTiming(), 0)])

    def cancel(self, query_id: str) -> None:
        """Drop a query, wherever it is."""
        job = self.scheduler.drop(query_id)
        self.dispatcher.drop(query_id)
        if job is not None:
            self._take([self.dispatcher.never_ran(job, DROPPED)])

    def run(self) -> None:
        """Work until nothing is due and nobody waits or runs."""
        while True:
            messages = self.dispatcher.work()
            if messages is not None:
                self._take(messages)
            elif self.scheduler.n_waiting or self.scheduler.n_running:
                raise AssertionError('the engine is idle although somebody waits or runs')
            elif not self.clock.skip():
                return

    def _take(self, messages: list[Message]) -> None:
        for message in messages:
            self.on_message(message)
            if isinstance(message, Finished):
                if message.query_id in self.ended:
                    raise AssertionError(f'{message.query_id} ended twice')
                self.ended[message.query_id] = message
                self.ended_ns[message.query_id] = self.clock()
