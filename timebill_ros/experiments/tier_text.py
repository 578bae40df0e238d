# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How well each tier foretells a text, token by token, beside the best tier."""

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


def _logs(engine: Engine, sequence: Sequence, ids: list[int], tier: str) -> torch.Tensor:
    """Return the log-probabilities of what follows each token but the last, [n, vocab_size]."""
    rows = []
    engine.rewind(sequence)
    for token in ids[_PREFILLED:-1]:
        engine.force(sequence, token)
        engine.decode_step([sequence], tier)
        rows.append(torch.log_softmax(engine.newest_logits(sequence), -1))
    return torch.stack(rows)
