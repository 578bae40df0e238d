# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
What tiers and evictions cost in quality, measured with the engine's own decode steps.

The reference is the best tier with nothing evicted. It answers a prompt with the server's default
sampling; then every tier and eviction ratio reads the same answer token by token, and what it
would say next is compared with what the reference would. So answers never drift apart, and a
divergence is that of one step. Needs a best tier that is exact; it is the first of ``info.tiers``.

Where a prompt has right answers, every tier and eviction ratio answers it as well (greedily, as the
server samples otherwise), and its score is the best F1 of words with one of them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp, nan

import torch
from torch import Tensor

from timebill_ros.budget.kept import SNAPKV_WINDOW
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.errors import EngineError
from timebill_ros.engine.sampling import Sampler
from timebill_ros.engine.sequence import Sequence
from timebill_ros.experiments.metrics.overlap import qa_f1
from timebill_ros.query import Sampling, Turn

ALPHAS = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95)
LENGTHS = (128, 512, 2048, 4096)
RESPONSE_TOKENS = 32
_TEMPLATE_TOKENS = 64       # a chat template takes about so many
_CHARS_PER_TOKEN = 6        # a first guess that is rather too long


@dataclass(frozen=True)
class Prompt:
    """One of the calibration set."""

    prompt_id: str
    text: str
    answers: tuple[str, ...] = ()       # right ones; () = not labelled


@dataclass
class Reading:
    """How one prompt's answer looks to one tier at one eviction ratio; means per token."""

    prompt_id: str
    n_prompt: int
    length: int             # the length that the prompt was cut to
    tier: str
    alpha: float
    n_kept: int
    divergence: float       # Kullback-Leibler, reference against this one, nats
    agreement: float        # share of tokens that both think likeliest
    nll: float              # negative log-likelihood of the reference's answer, nats
    tokens: int
    score: float = nan      # of its own answer, 0 to 1; NaN = the prompt is not labelled


def measure(
        engine: Engine, prompts: list[Prompt], lengths: tuple[int, ...] = LENGTHS,
        report: Callable[[int, int], None] = lambda done, total: None) -> Iterator[Reading]:
    """
    Read every prompt at every length that it and the context have room for.

    Longer prompts are cut in the middle: instructions stand at the ends.
    """
    total = len(prompts) * len(lengths)
    for done, (length, prompt) in enumerate(
            (length, prompt) for length in lengths for prompt in prompts):
        report(done, total)
        ids = cut_to(engine, prompt.text, length)
        room = len(ids) + RESPONSE_TOKENS + 1 <= engine.info.max_context
        if room and SNAPKV_WINDOW < len(ids) and len(ids) >= 0.9 * length:
            yield from _read(engine, prompt, ids, length)
    report(total, total)


def cut_to(engine: Engine, text: str, n_tokens: int) -> list[int]:
    """Return the ids of a prompt with its middle cut out, so that it has about ``n_tokens``."""
    keep = n_tokens * _CHARS_PER_TOKEN
    while True:
        part = text
        if len(text) > keep:
            part = text[:keep // 2] + '\n...\n' + text[len(text) - keep // 2:]
        ids = engine.tokenize([Turn('user', part)])
        if len(ids) <= n_tokens or keep < _TEMPLATE_TOKENS:
            return ids
        keep = int(min(len(part), keep) * (n_tokens - 0.5) / len(ids)) - 2


def _read(engine: Engine, prompt: Prompt, ids: list[int], length: int) -> Iterator[Reading]:
    sampling = Sampling(**{**engine.info.sampling, 'temperature': 0.0})
    sequence = engine.open_sequence(ids, len(ids) + RESPONSE_TOKENS + 2, sampling)
    try:
        answer = _answer(engine, sequence)
        if len(answer) < 2:
            return
        reference: Tensor | None = None
        for alpha in ALPHAS:        # ascending: what was evicted stays evicted
            engine.rewind(sequence)
            n_kept = engine.evict(sequence, alpha) if alpha else sequence.n_prompt
            for tier in engine.info.tiers:
                sequence.sampler = Sampler(Sampling(), ids, engine.device)  # no repetition penalty
                said = _log_probabilities(engine, sequence, answer, tier)
                reference = said if reference is None else reference
                score = nan
                if prompt.answers:
                    sequence.sampler = Sampler(sampling, [*ids, answer[0]], engine.device)
                    text = _text(engine, _decoded(engine, sequence, answer[0], tier))
                    score = max(qa_f1(text, each) for each in prompt.answers)
                yield Reading(
                    prompt.prompt_id, len(ids), length, tier, alpha, n_kept,
                    *_compare(reference, said, answer[1:]), tokens=len(answer) - 1, score=score)
    finally:
        engine.close(sequence)


def _answer(engine: Engine, sequence: Sequence) -> list[int]:
    """Return what the reference answers, without the end token."""
    while not engine.prefill_chunk(sequence):
        pass
    return _decoded(engine, sequence, engine.next_token(sequence), engine.info.tiers[0])


def _decoded(engine: Engine, sequence: Sequence, first: int, tier: str) -> list[int]:
    """Return the answer that begins with ``first``, the token after the prompt."""
    engine.rewind(sequence)
    engine.force(sequence, first)
    answer = [first]
    while len(answer) <= RESPONSE_TOKENS and answer[-1] not in engine.end_ids:
        answer += engine.decode_step([sequence], tier)
    return [token for token in answer if token not in engine.end_ids]


def _text(engine: Engine, tokens: list[int]) -> str:
    text = engine.response_text([])
    for token in tokens:
        text.push(token)
    text.finish()
    return text.text


def _log_probabilities(
        engine: Engine, sequence: Sequence, answer: list[int], tier: str) -> Tensor:
    """Return what comes after each token of an answer but the last, [tokens, vocab_size]."""
    engine.rewind(sequence)
    rows = []
    for token in answer[:-1]:
        engine.force(sequence, token)
        engine.decode_step([sequence], tier)
        rows.append(torch.log_softmax(engine.newest_logits(sequence).float().cpu(), -1))
    return torch.stack(rows)


def _compare(reference: Tensor, said: Tensor, answer: list[int]) -> tuple[float, float, float]:
    """Return divergence, agreement and negative log-likelihood, means over the tokens."""
    if not bool(torch.isfinite(said).all()):
        raise EngineError('a step gave logits that are not finite')
    divergence = (reference.exp() * (reference - said)).sum(-1)
    agreement = (reference.argmax(-1) == said.argmax(-1)).float()
    nll = -said[torch.arange(len(answer)), torch.tensor(answer)]
    return (max(0.0, float(divergence.mean())), float(agreement.mean()), float(nll.mean()))


def loss_of(divergence: float) -> float:
    """Return 1 - exp(-D), the loss that is planned with (``budget.quality``)."""
    return 1.0 - exp(-divergence)
