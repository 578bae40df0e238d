# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the profiler measures with: the engine's own calls, timed, on made-up sequences."""

from collections.abc import Iterator
from contextlib import contextmanager
import time

from timebill_ros.engine.engine import Engine
from timebill_ros.engine.sequence import Sequence
from timebill_ros.executor.messages import encode, Progress
from timebill_ros.query import Sampling, Stage, Turn

_PROMPT_WORDS = 100     # of the prompt whose tokenising counts as overhead


class EngineMeter:
    """
    The times of an engine that has nothing else to do, in seconds (``profiler.Target``).

    Long contexts are not computed but assumed, and what is sampled is sampled as the server does
    by default.
    """

    def __init__(self, engine: Engine) -> None:
        """Measure with this engine; nobody else may use it meanwhile."""
        self.info = engine.info
        self.chunk_tokens = engine.chunk_tokens
        self._engine = engine
        self._sampling = Sampling(**engine.info.sampling)

    def measure_prefill(self, n_tokens: int, n_done: int = 0) -> float:
        """Return the time from ``n_done`` prefilled tokens to the first token of the response."""
        with self._sequence(n_tokens, 1, n_done) as sequence:
            began_s = time.perf_counter()
            while not self._engine.prefill_chunk(sequence):
                pass
            self._engine.next_token(sequence)
            return time.perf_counter() - began_s

    def measure_decode_step(self, n_cached: int, repeats: int) -> list[float]:
        """Return the times of decode steps, the first with ``n_cached`` tokens cached."""
        times = []
        with self._sequence(n_cached, repeats + 1, n_cached) as sequence:
            sequence.tokens.append(sequence.prompt[-1])
            for _ in range(repeats):
                began_s = time.perf_counter()
                self._engine.decode_step([sequence])
                times.append(time.perf_counter() - began_s)
        return times

    def measure_evict(self, n_prompt: int, alpha: float) -> float:
        """Return the time to evict the share ``alpha`` of a prompt of ``n_prompt`` tokens."""
        with self._sequence(n_prompt, 1, n_prompt) as sequence:
            began_s = time.perf_counter()
            self._engine.evict(sequence, alpha)
            return time.perf_counter() - began_s

    def measure_overhead(self, n_tokens: int) -> float:
        """Return the time to tokenise a prompt, and to write and send a response token by token."""
        began_s = time.perf_counter()
        prompt_ids = self._engine.tokenize([Turn('user', ' '.join(['word'] * _PROMPT_WORDS))])
        text = self._engine.response_text(['\n\n\n'])
        for index in range(n_tokens):
            shown = text.push(prompt_ids[index % len(prompt_ids)])
            encode(Progress('0' * 32, Stage.DECODE, shown, index, 0, False, 0))
        return time.perf_counter() - began_s

    @contextmanager
    def _sequence(self, n_prompt: int, n_more: int, n_done: int) -> Iterator[Sequence]:
        """Open a sequence whose first ``n_done`` tokens are taken as prefilled."""
        ids = [index % self.info.vocab_size for index in range(7, 7 + n_prompt)]
        sequence = self._engine.open_sequence(ids, n_prompt + n_more, self._sampling)
        try:
            if n_done:
                self._engine.assume_prefilled(sequence, n_done)
            yield sequence
        finally:
            self._engine.close(sequence)
