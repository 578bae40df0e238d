# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Collect response lengths: run the target over a prompt file (TimeBill, section 3.2)."""

from dataclasses import dataclass, field
import json
from pathlib import Path
from typing import Any, Callable, Optional, Sequence

import torch

from timebill_ros.length_predictor.data import Prompt, read_jsonl
from timebill_ros.length_predictor.generate import generate
from timebill_ros.length_predictor.target import sampling_key, Target
from timebill_ros.query import Sampling


@dataclass
class CollectConfig:
    """How lengths are collected; batch limits count prompt and response tokens."""

    cap: int = 512
    sampling: Sampling = field(default_factory=lambda: Sampling(repetition_penalty=1.1))
    max_rows: int = 1024
    max_batch_tokens: int = 1_600_000
    keep_tokens: bool = (
        False  # write the response's ids too (for training on states while decoding)
    )


def collect(
    target: Target,
    prompts: Sequence[Prompt],
    path: Path,
    config: CollectConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """
    Append a line per prompt that ``path`` does not have yet; return how many were added.

    The file's first line holds the target's key, its precision and the sampling; a file of other
    settings is refused with ValueError. Rows are written as answers end, so an interrupted run
    goes on where it stopped. Prompts that leave no room for ``cap`` tokens in the model's context
    are skipped. Where the device's memory does not do, fewer answers are generated at once.
    """
    header = {
        'target': target.key,
        'dtype': str(target.model.dtype).split('.')[-1],
        'device': target.device.type,
        **sampling_key(config.sampling, config.cap),
    }
    done = _resume(path, header)
    context = target.model.config.max_position_embeddings
    asked = [p for p in prompts if p.prompt_id not in done]
    todo = [
        (p, ids)
        for p, ids in zip(asked, target.prompt_ids([p.text for p in asked]))
        if len(ids) + config.cap <= context
    ]
    added = 0
    with path.open('a', encoding='utf-8', buffering=1) as out:

        def write(index: int, response: list[int]) -> None:
            nonlocal added
            prompt, ids = todo[index]
            row = _row(prompt, len(ids), response, target.eos_ids, config)
            out.write(json.dumps(row) + '\n')
            added += 1
            finished.add(index)
            progress(added, total)

        total, rows, tokens = len(todo), config.max_rows, config.max_batch_tokens
        while todo:
            finished: set[int] = set()
            try:
                generate(
                    target, [ids for _, ids in todo], config.sampling, config.cap, rows, tokens,
                    write)
            except torch.OutOfMemoryError:
                if rows == 1:
                    raise
                rows, tokens = max(1, rows // 2), tokens // 2
                if target.device.type == 'cuda':
                    torch.cuda.empty_cache()
            todo = [pair for index, pair in enumerate(todo) if index not in finished]
    return added


def _row(
    prompt: Prompt,
    n_prompt: int,
    response: list[int],
    eos_ids: Sequence[int],
    config: CollectConfig,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        'id': prompt.prompt_id,
        'n_prompt': n_prompt,
        'n': len(response),
        'capped': response[-1] not in eos_ids,
    }
    if config.keep_tokens:
        row['tokens'] = response
    return row


def _resume(path: Path, header: dict[str, Any]) -> set:
    """Start the file, or check its settings and drop a line that a crash cut off."""
    if not path.exists() or path.stat().st_size == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(header) + '\n', encoding='utf-8')
        return set()
    rows = list(read_jsonl(path))
    if rows[0] != header:
        raise ValueError(
            f'{path} was collected with other settings: {rows[0]}, now {header}; give another file'
        )
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows), encoding='utf-8')
    return {row['id'] for row in rows[1:]}


@dataclass
class Lengths:
    """Collected lengths of one target under one setting of its sampling."""

    header: dict[str, Any]
    rows: dict[str, dict[str, Any]]  # by prompt id


def read_lengths(path: Path, expect_target: Optional[str] = None) -> Lengths:
    """Read a length file; ValueError when it is of another target than ``expect_target``."""
    rows = list(read_jsonl(path))
    if not rows or 'target' not in rows[0]:
        raise ValueError(f'{path} does not begin with a line that names its target')
    if len(rows) < 2:
        raise ValueError(f'{path} holds no lengths')
    if expect_target is not None and rows[0]['target'] != expect_target:
        raise ValueError(
            f'{path} holds lengths of target {rows[0]["target"]}, not of {expect_target}'
        )
    return Lengths(rows[0], {row['id']: row for row in rows[1:]})
