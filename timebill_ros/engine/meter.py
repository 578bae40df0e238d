# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the profiler measures with: queries and the engine's calls, timed, on made-up prompts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import time
from typing import Any

from timebill_ros.budget.planner import PlannerConfig, Planning
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.sequence import Sequence
from timebill_ros.engine.shared_step import StepClock
from timebill_ros.engine.unattended import answer, question
from timebill_ros.executor.messages import ModelInfo
from timebill_ros.query import Sampling, Turn
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import AFFINE, DECODE_STEP, Law, PREFILL

_QUESTION = 'Write a story about each day of a robot on a farm. ' * 10
_COLD_TOKENS = 64
_LONGEST_REAL = 8192    # of a prompt that is prefilled before steps and evictions on a GPU
_PAUSE_S = 0.01         # before a prompt: queries do not come back to back
_GPU_PAUSE_S = 0.1      # after so long the host has gone to sleep, and a GPU's clock is back
_HEATS_S = 0.02         # a prefill that takes longer lowers it
_LEAST_S = 1e-6     # what is shorter is noise


class EngineMeter:
    """
    The times of an engine that has nothing else to do, in seconds (``profiler.Target``).

    Prefills, steps, evictions and overhead are those of queries (``unattended``), sampled as the
    server does by default. Prompts are taken as prefilled, but on a GPU, where a prefill lowers the
    clock of what comes next: a single one is really prefilled there, up to _LONGEST_REAL tokens,
    before a longer one another of so many. Nothing is measured there until the clock has recovered
    from the prompt before.
    """

    def __init__(self, engine: Engine) -> None:
        """Measure with this engine; nobody else may use it meanwhile."""
        self.info = engine.info
        self.chunk_tokens = engine.prefill_tokens
        self.padded_lengths = engine.padded_lengths
        self.attention_stair = engine.attention_stair
        self.prefills_first = _LONGEST_REAL if engine.device.type == 'cuda' else 0
        self._engine = engine
        self._sampling = Sampling(**engine.info.sampling)
        self._planning = any_planning(engine.info, engine.info.tiers)
        self._prefill_pause_s = _GPU_PAUSE_S if self.prefills_first else _PAUSE_S
        self._recovered_s = 0.0         # when a GPU's clock has

    def measure_prefill(self, n_tokens: int, n_done: int = 0) -> float:
        """
        Return the time from ``n_done`` prefilled tokens to the first token of the response.

        From the start, opening the sequence counts: it looks at every token of the prompt; and the
        processors have paused before. Whole chunks behind others are taken as followed by more, so
        that no first token is chosen.
        """
        if not n_done:
            self._pause(self._prefill_pause_s)
            return self._whole_prefill(n_tokens)
        self._pause(0.0)
        goes_on = (n_tokens - n_done) % self.chunk_tokens == 0
        with self._sequence(n_tokens + goes_on, n_done) as sequence:
            began_s = time.perf_counter()
            while sequence.n_prefilled < n_tokens:
                self._engine.prefill_chunk(sequence)
            if not goes_on:
                self._engine.next_token(sequence)
            return self._prefilled(time.perf_counter() - began_s)

    def measure_decode_step(
            self, n_cached: int, repeats: int, tier: str = '', width: int = 1) -> list[float]:
        """
        Return the times of the first decode steps of responses, of ``width`` at once.

        Each has ``n_cached`` tokens cached, or a few more.
        """
        noted = self._prepared(n_cached, width)
        ids = self._ids(n_cached)
        answer(noted, any_planning(self.info, [tier or self.info.tiers[0]]), [
            (question(number, repeats + 1, self._sampling), ids) for number in range(width)])
        times: list[float] = noted.step_s[width]
        return times

    def measure_evict(self, n_prompt: int, alpha: float) -> float:
        """Return the time to evict the share ``alpha`` of a prompt of ``n_prompt`` tokens."""
        noted = self._prepared(n_prompt)
        planning = any_planning(
            self.info, self.info.tiers, PlannerConfig(policy='fixed', fixed_alpha=alpha))
        timing, = answer(noted, planning, [
            (question(0, 2, self._sampling), self._ids(n_prompt))])
        self._prefilled(timing.prefill)
        return timing.evict

    def measure_reevict(self, n_prompt: int, alpha: float) -> float:
        """Return the time to evict up to ``alpha`` where half of that was evicted before."""
        with self._sequence(n_prompt, n_prompt) as sequence:
            self._engine.evict(sequence, alpha / 2.0)
            began_s = time.perf_counter()
            self._engine.evict(sequence, alpha)
            return time.perf_counter() - began_s

    def measure_cold(self, idle_s: float) -> float:
        """Return how much longer a short prefill takes after ``idle_s`` than right after it."""
        time.sleep(idle_s)
        first_s = self._whole_prefill(_COLD_TOKENS)
        again_s = min(self._whole_prefill(_COLD_TOKENS) for _ in range(3))
        return max(_LEAST_S, first_s - again_s)

    def measure_overhead(self, n_tokens: int) -> float:
        """
        Return the time of a query of ``n_tokens`` that is neither prefill nor decode step.

        That is planning, scheduling, forecasting, text and messages, from the first token on.
        """
        ids = self._engine.tokenize([Turn('user', _QUESTION)])[:self.info.max_context - n_tokens]
        query = question(0, n_tokens, self._sampling)
        timing, = answer(self._engine, self._planning, [(query, ids)])
        # should the model have ended its answer early, the rest would have cost the same again
        return timing.overhead * n_tokens / max(1, timing.n_generated)

    def _prepared(self, n_prompt: int, width: int = 1) -> Any:
        """Return the engine that answers ``width`` prompts, prefilled as far as the class says."""
        if self.prefills_first:
            self._pause(_PAUSE_S)
        if width == 1 and self.prefills_first >= n_prompt:
            return NotedEngine(self._engine)
        if width == 1 and self.prefills_first:
            self._whole_prefill(self.prefills_first)
        return _Assumed(self._engine)

    def _pause(self, least_s: float) -> None:
        """Pause, and until a GPU's clock has recovered."""
        time.sleep(max(least_s, self._recovered_s - time.perf_counter()))

    def _prefilled(self, seconds: float) -> float:
        """Note what a prefill took that is over now, and return it."""
        if self.prefills_first and seconds > _HEATS_S:
            self._recovered_s = time.perf_counter() + _GPU_PAUSE_S
        return seconds

    def _whole_prefill(self, n_tokens: int) -> float:
        query = question(0, 1, self._sampling)
        timing, = answer(self._engine, self._planning, [(query, self._ids(n_tokens))])
        return self._prefilled(timing.prefill)

    def _ids(self, n_tokens: int) -> list[int]:
        """Return the ids of a made-up prompt."""
        return [index % self.info.vocab_size for index in range(7, 7 + n_tokens)]

    @contextmanager
    def _sequence(self, n_prompt: int, n_done: int) -> Iterator[Sequence]:
        """Open a sequence whose first ``n_done`` tokens are taken as prefilled."""
        sequence = self._engine.open_sequence(self._ids(n_prompt), n_prompt + 1, self._sampling)
        try:
            self._engine.assume_prefilled(sequence, n_done)
            yield sequence
        finally:
            self._engine.close(sequence)


class NotedEngine:
    """An engine that notes what its decode steps take."""

    end_ids: tuple[int, ...] = ()       # a response goes on for as long as is wanted
    predictor = None                    # nothing is predicted of it

    def __init__(self, engine: Engine) -> None:
        """Hand everything else on to ``engine``."""
        self._engine = engine
        self._clock = StepClock(time.perf_counter_ns)
        self.step_s: dict[int, list[float]] = {}    # by number of sequences

    def __getattr__(self, name: str) -> Any:
        """Return what the engine has of this name."""
        return getattr(self._engine, name)

    def decode_step(self, sequences: list[Sequence], tier: str,
                    goes_on: Callable[[bool], bool]) -> list[int]:
        """Take a step, and note its time."""
        tokens, step_s = self._clock.step(self._engine, sequences, tier, goes_on)
        self.step_s.setdefault(len(sequences), []).append(step_s)
        return tokens


class _Assumed(NotedEngine):
    """One that takes prompts as prefilled as well."""

    def begin_prefill(self, sequence: Sequence) -> None:
        """Begin with nothing."""

    def prefill_chunk(self, sequence: Sequence) -> bool:
        """Take the whole prompt as prefilled."""
        self._engine.assume_prefilled(sequence, sequence.n_prompt)
        self._engine.check_device()     # an eviction does not wait for the noise
        return True

    def next_token(self, sequence: Sequence) -> int:
        """Begin the response with the prompt's last token."""
        sequence.tokens.append(sequence.prompt[-1])
        return sequence.prompt[-1]


def any_planning(
        info: ModelInfo, tiers: list[str], config: PlannerConfig = PlannerConfig()) -> Planning:
    """Return something to plan ``tiers`` with while nothing is known: that takes as long."""
    laws = (Law(PREFILL, AFFINE, (1e-6, 1e-3)), *(
        Law(DECODE_STEP, AFFINE, (1e-6, 1e-3), tier=tier) for tier in tiers))
    return Planning(TimeEstimator(TimingCoefficients(
        1, info.device, info.key, info.dtype, info.engine_version, laws), tiers[0]),
        config, '')
