# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What lower precision changes: how well a tier foretells a text, which answers stay the same."""

from math import exp

import torch

from timebill_ros.engine.engine import Engine
from timebill_ros.engine.sequence import Sequence
from timebill_ros.experiments.engine_bench import Row
from timebill_ros.query import Sampling, Turn

_PREFILLED = 32          # tokens that every tier takes from the prefill


def read_text(engine: Engine, text: str, n_tokens: int) -> list[Row]:
    """Return a row per tier over the first ``n_tokens`` of a text, as a user's message."""
    ids = engine.tokenize([Turn('user', text)])[:min(n_tokens, engine.info.max_context - 2)]
    sequence = engine.open_sequence(ids[:_PREFILLED], len(ids) + 2, Sampling())
    try:
        while not engine.prefill_chunk(sequence):
            pass
        logs = {tier: _logs(engine, sequence, ids, tier) for tier in engine.info.tiers}
    finally:
        engine.close(sequence)
    best = logs[engine.info.tiers[0]]
    following = torch.tensor(ids[_PREFILLED + 1:])[:, None]
    return [{
        'tier': tier, 'tokens': len(log),
        'perplexity': round(exp(-log.gather(1, following).mean()), 4),
        'agreement': round(float((log.argmax(1) == best.argmax(1)).float().mean()), 4),
        'divergence_nats': round(float((best.exp() * (best - log)).sum(1).mean()), 5),
    } for tier, log in logs.items()]


def same_answers(engines: dict[str, Engine], prompts: list[str], n_tokens: int) -> list[Row]:
    """Return of each engine, how many prompts it answers with the tokens of the first one."""
    answers = {name: [_answer(engine, prompt, n_tokens) for prompt in prompts]
               for name, engine in engines.items()}
    first = answers[next(iter(engines))]
    return [{'prefill': name, 'prompts': len(prompts), 'tokens': n_tokens,
             'same': sum(mine == theirs for mine, theirs in zip(found, first))}
            for name, found in answers.items()]


def _answer(engine: Engine, prompt: str, n_tokens: int) -> list[int]:
    ids = engine.tokenize([Turn('user', prompt)])[:engine.info.max_context - n_tokens]
    sequence = engine.open_sequence(
        ids, len(ids) + n_tokens, Sampling(**engine.info.sampling))
    try:
        while not engine.prefill_chunk(sequence):
            pass
        tokens = [engine.next_token(sequence)]
        while len(tokens) < n_tokens and tokens[-1] not in engine.end_ids:
            tokens += engine.decode_step([sequence])
        return tokens
    finally:
        engine.close(sequence)


def _logs(engine: Engine, sequence: Sequence, ids: list[int], tier: str) -> torch.Tensor:
    """Return the log-probabilities of what follows each token but the last, [n, vocab_size]."""
    rows = []
    engine.rewind(sequence)
    for token in ids[_PREFILLED:-1]:
        engine.force(sequence, token)
        engine.decode_step([sequence], tier)
        rows.append(torch.log_softmax(engine.newest_logits(sequence), -1))
    return torch.stack(rows)
