# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""From what the quality meter reads to a quality profile, and a record of how it came about."""

from collections.abc import Callable
import gzip
import json
from math import exp, isnan
from pathlib import Path
import time
from typing import Any

from timebill_ros.budget.quality import QualityProfile
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.errors import EngineError
from timebill_ros.engine.quality_meter import ALPHAS, loss_of, measure, Prompt, Reading


def measure_profile(
        engine: Engine, prompts: list[Prompt], lengths: tuple[int, ...],
        report: Callable[[int, int], None]) -> tuple[QualityProfile, dict[str, Any]]:
    """Return the profile and what to store beside it; raises EngineError if no prompt fits."""
    began_s = time.perf_counter()
    readings = list(measure(engine, prompts, lengths, report))
    if not readings:
        raise EngineError(
            f'no prompt is long enough for one of the lengths {", ".join(map(str, lengths))}, or '
            f'the context of {engine.info.max_context} tokens is too short for them')
    return profile_of(engine.info.key, engine.info.tiers, readings), {
        'date': time.strftime('%Y-%m-%d'), 'device': engine.info.device,
        'dtype': engine.info.dtype, 'engine_version': engine.info.engine_version,
        'seconds': round(time.perf_counter() - began_s, 1),
        'prompts': len({each.prompt_id for each in readings}),
        'cells': cells_of(engine.info.tiers, readings)}


def profile_of(model: str, tiers: list[str], readings: list[Reading]) -> QualityProfile:
    """Return the losses: 1 - exp(-D), D the mean divergence over all tokens of a length."""
    lengths = tuple(sorted({each.length for each in readings}))
    return QualityProfile(model, ALPHAS, lengths, {
        tier: tuple(
            tuple(round(loss_of(_mean(_cell(readings, tier, length, alpha), 'divergence')), 5)
                  for alpha in ALPHAS)
            for length in lengths)
        for tier in tiers})


def cells_of(tiers: list[str], readings: list[Reading]) -> list[dict[str, Any]]:
    """Return every measure of every length, tier and eviction ratio."""
    cells = []
    for length in sorted({each.length for each in readings}):
        for tier in tiers:
            for alpha in ALPHAS:
                cell = _cell(readings, tier, length, alpha)
                scores = [each.score for each in cell if not isnan(each.score)]
                cells.append({
                    'length': length, 'tier': tier, 'alpha': alpha, 'prompts': len(cell),
                    'tokens': sum(each.tokens for each in cell),
                    'divergence': round(_mean(cell, 'divergence'), 5),
                    'agreement': round(_mean(cell, 'agreement'), 4),
                    'perplexity': round(exp(_mean(cell, 'nll')), 3),
                    'score': round(sum(scores) / len(scores), 4) if scores else None,
                    'labelled': len(scores)})
    return cells


def read_prompts(path: Path) -> list[Prompt]:
    """
    Read JSON lines with id, prompt and perhaps answers (right ones, a list), plain or .gz.

    Raises ValueError that names the line.
    """
    opened = gzip.open(path, 'rt', encoding='utf-8') if path.suffix == '.gz' else open(
        path, encoding='utf-8')
    prompts = []
    with opened as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                prompts.append(Prompt(
                    str(row['id']), str(row['prompt']),
                    tuple(str(answer) for answer in row.get('answers', ()))))
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(f'{path}:{number} has no id and prompt: {error}') from error
    return prompts


def _cell(readings: list[Reading], tier: str, length: int, alpha: float) -> list[Reading]:
    return [each for each in readings
            if (each.tier, each.length, each.alpha) == (tier, length, alpha)]


def _mean(cell: list[Reading], name: str) -> float:
    total = sum(each.tokens * float(getattr(each, name)) for each in cell)
    return total / sum(each.tokens for each in cell)
