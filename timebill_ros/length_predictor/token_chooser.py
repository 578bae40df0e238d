# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The choice of the next tokens of a batch, as transformers' processors make it."""

from typing import Sequence

import torch
from torch import Tensor

from timebill_ros.query import Sampling


class TokenChooser:
    """
    The next token of each row, as transformers' processors choose it.

    The repetition penalty works on a table of the tokens seen so far, prompt and response, built
    from the rows' real ids. Padding therefore never counts as seen, whatever its id.
    """

    def __init__(
        self, sampling: Sampling, rows: int, vocab_size: int, device: torch.device
    ) -> None:
        self._sampling = sampling
        self.seen = torch.zeros(rows, vocab_size, dtype=torch.bool, device=device)
        self._generator = torch.Generator(device).manual_seed(sampling.seed or 0)

    def start(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Begin new prompts in ``rows``."""
        fresh = torch.zeros(len(rows), self.seen.shape[1], dtype=torch.bool)
        for row, ids in enumerate(prompts):
            fresh[row, torch.tensor(sorted(set(ids)))] = True
        self.seen[torch.tensor(rows, device=self.seen.device)] = fresh.to(self.seen.device)

    def choose(self, logits: Tensor, seen: Tensor) -> Tensor:
        """Return one token id per row from ``logits`` [rows, vocabulary]; adds it to ``seen``."""
        scores = logits.float()
        penalty = self._sampling.repetition_penalty
        if penalty != 1.0:
            penalised = torch.where(scores < 0, scores * penalty, scores / penalty)
            scores = torch.where(seen, penalised, scores)
        token = scores.argmax(-1) if self._sampling.temperature == 0 else self._draw(scores)
        seen.scatter_(1, token[:, None], True)
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
