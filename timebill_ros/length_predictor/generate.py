# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Batched generation for collecting lengths: a row that ends makes room for the next prompt."""

from typing import Callable, Sequence

import torch

from timebill_ros.length_predictor.decode_rows import DecodeRows, VISIBLE_STEP
from timebill_ros.length_predictor.target import batches_by_length, Target
from timebill_ros.query import Sampling

_CHECK_STEPS = 16           # decode steps between two looks at which rows have ended
_REFILL_SHARE = 1 / 8       # rows are given to new prompts when so many of them are free
_SHRINK_SHARE = 1 / 2       # at the end the batch shrinks when no more than this share is in use
_PREFILL_TOKENS = 100_000   # in one forward pass
_LONG = 3                   # prompts that need more than 3 caps of room have a batch of their own

Done = Callable[[int, list[int]], None]     # index of a prompt, its response ids


@torch.inference_mode()
def generate(
    target: Target,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    cap: int,
    max_rows: int = 1024,
    max_batch_tokens: int = 1_600_000,
    done: Done = lambda index, response: None,
) -> list[list[int]]:
    """
    Return each prompt's response ids, the end token included, at most ``cap`` of them.

    At most ``max_rows`` prompts are answered at once, with room for ``max_batch_tokens`` prompt
    and response tokens together; ``done`` is called for each as soon as its end has been seen.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    limit = _LONG * cap
    groups: tuple[list[int], list[int]] = ([], [])
    for index, ids in enumerate(prompts):
        groups[len(ids) + cap > limit].append(index)
    for group in groups:
        if not group:
            continue
        longest = max(len(prompts[i]) for i in group) + cap
        capacity = -(-longest // VISIBLE_STEP) * VISIBLE_STEP
        rows = max(1, min(max_rows, max_batch_tokens // capacity, len(group)))
        batch = DecodeRows(target, rows, capacity, sampling, cap)
        _work_off(batch, group, prompts, answers, done)
    return answers


def _work_off(
    batch: DecodeRows,
    group: list[int],
    prompts: Sequence[Sequence[int]],
    answers: list[list[int]],
    done: Done,
) -> None:
    waiting = sorted(group, key=lambda i: len(prompts[i]))      # the longest last: first to go
    while True:
        for row, response in batch.take_ended():
            index = batch.prompt[row]
            if index is not None:
                answers[index] = response
                done(index, response)
            batch.prompt[row] = None
        free = [row for row, prompt in enumerate(batch.prompt) if prompt is None]
        rows = len(batch.prompt)
        if waiting and len(free) >= max(1, _REFILL_SHARE * min(rows, len(waiting))):
            chosen = [waiting.pop() for _ in range(min(len(free), len(waiting)))]
            lengths = [len(prompts[i]) for i in chosen]
            for part in batches_by_length(lengths, rows, _PREFILL_TOKENS, 0):
                taken = [free.pop() for _ in part]
                batch.fill(taken, [prompts[chosen[i]] for i in part])
                for row, i in zip(taken, part):
                    batch.prompt[row] = chosen[i]
            continue        # an answer may be over with its first token
        if len(free) == rows:
            return
        if not waiting and rows - len(free) <= _SHRINK_SHARE * rows:
            batch.shrink()
        batch.run(_CHECK_STEPS)
