# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Batched generation for collecting lengths: rows that end leave the batch."""

from typing import List, Sequence

import torch
from torch import Tensor

from timebill_ros.length_predictor.attention import BatchCache
from timebill_ros.length_predictor.target import Target
from timebill_ros.query import Sampling

# Rows that have ended are taken out of the batch when they make up this share of it: each removal
# copies the cache.
_COMPACT_BELOW = 0.85


class TokenChooser:
    """
    The next token of each row, as transformers' processors choose it.

    The repetition penalty works on a table of the tokens seen so far, prompt and response, built
    from the rows' real ids. Padding therefore never counts as seen, whatever its id.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompts: Sequence[Sequence[int]],
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._sampling = sampling
        self._seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool, device=device)
        for row, ids in enumerate(prompts):
            self._seen[row, torch.tensor(sorted(set(ids)), device=device)] = True
        self._generator = torch.Generator(device).manual_seed(sampling.seed or 0)

    def keep(self, rows: Tensor) -> None:
        """Forget the rows that are not in ``rows`` (indices)."""
        self._seen = self._seen[rows]

    def choose(self, logits: Tensor) -> Tensor:
        """Return one token id per row from ``logits`` [rows, vocabulary]."""
        scores = logits.float()
        penalty = self._sampling.repetition_penalty
        if penalty != 1.0:
            penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
            scores = torch.where(self._seen, penalised, scores)
        token = scores.argmax(-1) if self._sampling.temperature == 0 else self._draw(scores)
        self._seen.scatter_(1, token[:, None], True)
        return token

    def _draw(self, scores: Tensor) -> Tensor:
        scores = scores / self._sampling.temperature
        if self._sampling.top_k > 0:
            kth = scores.topk(min(self._sampling.top_k, scores.shape[-1])).values[:, -1:]
            scores = scores.masked_fill(scores < kth, -torch.inf)
        if self._sampling.top_p < 1.0:
            ordered, order = scores.sort(descending=False)
            remove = ordered.softmax(-1).cumsum(-1) <= 1.0 - self._sampling.top_p
            remove[:, -1] = False
            scores = scores.masked_fill(remove.scatter(1, order, remove), -torch.inf)
        return torch.multinomial(scores.softmax(-1), 1, generator=self._generator)[:, 0]


@torch.inference_mode()
def generate(
    target: Target, prompts: Sequence[Sequence[int]], sampling: Sampling, cap: int
) -> List[List[int]]:
    """
    Return each prompt's response ids, the end token included, at most ``cap`` of them.

    Prompts are padded on the right: the causal mask alone keeps padding out of the prefill, and in
    the decode steps a mask hides the gap between a short prompt and its first answer token.
    Positions are given explicitly.
    """
    device = target.device
    n_prompt = torch.tensor([len(ids) for ids in prompts], device=device)
    width = int(n_prompt.max())
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    cache = BatchCache(target.model.config, width + cap)
    decoder, head = target.model.get_decoder(), target.model.get_output_embeddings()
    states = decoder(
        input_ids=ids.to(device), past_key_values=cache, use_cache=True
    ).last_hidden_state
    logits = head(states[torch.arange(len(prompts), device=device), n_prompt - 1])
    del states
    chooser = TokenChooser(sampling, prompts, logits.shape[-1], device)
    end = torch.tensor(target.eos_ids, device=device)
    visible = torch.zeros(len(prompts), width + cap, dtype=torch.bool, device=device)
    visible[:, :width] = torch.arange(width, device=device) < n_prompt[:, None]
    running = torch.arange(len(prompts), device=device)
    out = torch.full((len(prompts), cap), -1, dtype=torch.long, device=device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for step in range(cap):
        token = chooser.choose(logits)
        out[running, step] = torch.where(alive, token, -1)
        alive &= ~torch.isin(token, end)
        if step + 1 == cap:
            break
        if step % 8 == 7 or len(alive) < 64:
            n_alive = int(alive.sum())
            if n_alive == 0:
                break
            if n_alive < _COMPACT_BELOW * len(alive):
                rows = alive.nonzero()[:, 0]
                cache.select(rows)
                chooser.keep(rows)
                running, token, n_prompt, visible, alive = (
                    t[rows] for t in (running, token, n_prompt, visible, alive)
                )
        visible[:, width + step] = True
        logits = target.model(
            input_ids=token[:, None],
            attention_mask=visible[:, None, None, : width + step + 1],
            position_ids=(n_prompt + step)[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    return [[t for t in row if t >= 0] for row in out.tolist()]
