# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the profiler measures with: the engine's own calls, timed, on made-up sequences."""

from collections.abc import Iterator
from contextlib import contextmanager, ExitStack
import os
import time

from timebill_ros.budget.forecast import rest_in_decode_s
from timebill_ros.budget.planner import PlannerConfig, Planning
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.errors import EngineError
from timebill_ros.engine.pipeline import QueryRun
from timebill_ros.engine.sequence import Sequence
from timebill_ros.engine.text import ResponseText
from timebill_ros.executor.messages import (
    encode, Finished, ModelInfo, Progress, write_message)
from timebill_ros.query import Outcome, Query, QueryTiming, Sampling, Stage, Turn
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import AFFINE, DECODE_STEP, Law, PREFILL

_QUESTION = 'Write a story about each day of a robot on a farm. ' * 10
_COLD_TOKENS = 64
_LEAST_S = 1e-6     # what is shorter is noise
_NEVER_NS = 3_600_000_000_000


class EngineMeter:
    """
    The times of an engine that has nothing else to do, in seconds (``profiler.Target``).

    Long contexts are not computed but assumed, and what is sampled is sampled as the server does
    by default.
    """

    def __init__(self, engine: Engine) -> None:
        """Measure with this engine; nobody else may use it meanwhile."""
        self.info = engine.info
        self.chunk_tokens = engine.prefill_tokens
        self.padded_lengths = engine.padded_lengths
        self._engine = engine
        self._opening_s = 0.0       # what opening the newest sequence took
        self._sampling = Sampling(**engine.info.sampling)
        self._planning = _any_planning(engine.info)

    def measure_prefill(self, n_tokens: int, n_done: int = 0) -> float:
        """
        Return the time from ``n_done`` prefilled tokens to the first token of the response.

        From the start, opening the sequence counts: it looks at every token of the prompt.
        """
        with self._sequence(n_tokens, 1, n_done) as sequence:
            began_s = time.perf_counter()
            while not self._engine.prefill_chunk(sequence):
                pass
            self._engine.next_token(sequence)
            took_s = time.perf_counter() - began_s
            return took_s if n_done else took_s + self._opening_s

    def measure_decode_step(
            self, n_cached: int, repeats: int, tier: str = '', width: int = 1) -> list[float]:
        """
        Return the times of decode steps of ``width`` sequences at once.

        Each has ``n_cached`` tokens cached, or a few more.
        """
        times = []
        with ExitStack() as stack:
            sequences = [stack.enter_context(self._sequence(n_cached, repeats + 2, n_cached))
                         for _ in range(width)]
            for sequence in sequences:
                sequence.tokens.append(sequence.prompt[-1])
            texts = [self._engine.response_text([]) for _ in sequences]
            tokens = self._engine.decode_step(sequences, tier)  # a response's first step sets up
            for _ in range(repeats):
                self._between_steps(texts, tokens, n_cached)
                began_s = time.perf_counter()
                tokens = self._engine.decode_step(sequences, tier)
                times.append(time.perf_counter() - began_s)
        return times

    def _between_steps(self, texts: list[ResponseText], tokens: list[int], n_cached: int) -> None:
        """Do what a server does between two steps: after it the processor's caches are cold."""
        for text, token in zip(texts, tokens):
            left_s = rest_in_decode_s(self._planning, n_cached, self.info.n_max)
            encode(Progress('0' * 32, Stage.DECODE, text.push(token), 1, round(left_s), False, 0))

    def measure_evict(self, n_prompt: int, alpha: float) -> float:
        """Return the time to evict the share ``alpha`` of a prompt of ``n_prompt`` tokens."""
        with self._sequence(n_prompt, 1, n_prompt) as sequence:
            began_s = time.perf_counter()
            self._engine.evict(sequence, alpha)
            return time.perf_counter() - began_s

    def measure_reevict(self, n_prompt: int, alpha: float) -> float:
        """Return the time to evict up to ``alpha`` where half of that was evicted before."""
        with self._sequence(n_prompt, 1, n_prompt) as sequence:
            self._engine.evict(sequence, alpha / 2.0)
            began_s = time.perf_counter()
            self._engine.evict(sequence, alpha)
            return time.perf_counter() - began_s

    def measure_cold(self, idle_s: float) -> float:
        """Return how much longer a short prefill takes after ``idle_s`` than right after it."""
        time.sleep(idle_s)
        first_s = self.measure_prefill(_COLD_TOKENS)
        again_s = min(self.measure_prefill(_COLD_TOKENS) for _ in range(3))
        return max(_LEAST_S, first_s - again_s)

    def measure_overhead(self, n_tokens: int) -> float:
        """
        Return the time of a query of ``n_tokens`` that is neither prefill nor decode step.

        That is tokenising, planning, forecasting, text, and messages; measured around real steps,
        because what runs between two of them finds the processor's caches cold.
        """
        now_ns = time.monotonic_ns()
        query = Query(
            '0' * 32, [Turn('user', _QUESTION)], now_ns, now_ns + _NEVER_NS, now_ns + _NEVER_NS,
            n_tokens, cap_is_clients=False, sampling=self._sampling)
        began_s = time.perf_counter()
        prompt_ids = self._engine.tokenize(query.messages)
        tokenize_s = time.perf_counter() - began_s
        room = self.info.max_context - n_tokens
        timing = answer(QueryRun(
            self._engine, query, prompt_ids[:room], n_tokens, self._planning, tokenize_s))
        # should the model have ended its answer early, the rest would have cost the same again
        return timing.overhead * n_tokens / max(1, timing.n_generated)

    @contextmanager
    def _sequence(self, n_prompt: int, n_more: int, n_done: int) -> Iterator[Sequence]:
        """Open a sequence whose first ``n_done`` tokens are taken as prefilled."""
        ids = [index % self.info.vocab_size for index in range(7, 7 + n_prompt)]
        began_s = time.perf_counter()
        sequence = self._engine.open_sequence(ids, n_prompt + n_more, self._sampling)
        self._opening_s = time.perf_counter() - began_s
        try:
            if n_done:
                self._engine.assume_prefilled(sequence, n_done)
            yield sequence
        finally:
            self._engine.close(sequence)


def answer(run: QueryRun) -> QueryTiming:
    """Do all of a query's work, its messages sent to nobody; raises EngineError if it fails."""
    with open(os.devnull, 'wb') as nowhere:
        while not run.done:
            messages = run.advance()
            began_s = time.perf_counter()
            for message in messages:
                write_message(nowhere, message)
            run.told(time.perf_counter() - began_s)
    if isinstance(message, Finished) and message.ending.outcome != Outcome.COMPLETED:
        raise EngineError(message.ending.error_msg)
    return run.timing


def _any_planning(info: ModelInfo) -> Planning:
    """Return something to plan with while nothing is known: planning takes as long with any."""
    laws = (Law(PREFILL, AFFINE, (1e-6, 1e-3)), *(
        Law(DECODE_STEP, AFFINE, (1e-6, 1e-3), tier=tier) for tier in info.tiers))
    return Planning(TimeEstimator(TimingCoefficients(
        1, info.device, info.key, info.dtype, info.engine_version, laws), info.tiers[0]),
        PlannerConfig(), '')
