# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The choice of the next token: what transformers' processors compute, in their order."""

import math
from typing import List

import torch
from torch import Tensor

from timebill_ros.engine.errors import NotFinite
from timebill_ros.query import Sampling


class Sampler:
    """
    Chooses the tokens of one sequence.

    Order as in transformers: repetition penalty (CTRL, arXiv 1909.05858, section 4.1) over prompt
    and response; then, unless greedy, temperature, top-k, top-p (arXiv 1904.09751), and a draw.
    """

    def __init__(self, sampling: Sampling, prompt: List[int], device: torch.device) -> None:
        """Start a sequence; the same seed gives the same draws."""
        self.sampling = sampling
        self._generator = None
        if not sampling.greedy:
            self._generator = torch.Generator(device)
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)
        self._seen = set(prompt)
        self._seen_ids = torch.tensor(sorted(self._seen), dtype=torch.long, device=device)

    def choose(self, logits: Tensor) -> int:
        """
        Return the next token, given the logits [vocab_size] after the newest one.

        Raises NotFinite if one of them is NaN, or the best of them not finite.
        """
        scores = self._penalised(logits)
        token = int(scores.argmax())            # of a NaN, if there is one
        if not math.isfinite(scores[token]):
            raise NotFinite
        if self._generator is not None:
            token = self._draw(self._warped(scores))
        self._remember(token)
        return token

    def process(self, logits: Tensor) -> Tensor:
        """Return the scores [vocab_size], float32, that the choice is made from."""
        return self._warped(self._penalised(logits))

    def _penalised(self, logits: Tensor) -> Tensor:
        scores = logits.float()
        penalty = self.sampling.repetition_penalty
        if penalty == 1.0:
            return scores
        found = scores[self._seen_ids]
        found = torch.where(found < 0, found * penalty, found / penalty)
        return scores.index_copy(0, self._seen_ids, found)

    def _warped(self, scores: Tensor) -> Tensor:
        if self.sampling.greedy:
            return scores
        scores = _top_k(scores / self.sampling.temperature, self.sampling.top_k)
        return _top_p(scores, self.sampling.top_p)

    def _draw(self, scores: Tensor) -> int:
        candidates = _candidates(scores)        # drawing from few is quick, from a vocabulary not
        probabilities = torch.softmax(scores[candidates], -1)
        drawn = torch.multinomial(probabilities, 1, generator=self._generator)
        return int(candidates[drawn])

    def _remember(self, token: int) -> None:
        if self.sampling.repetition_penalty != 1.0 and token not in self._seen:
            self._seen.add(token)
            self._seen_ids = torch.cat((self._seen_ids, self._seen_ids.new_tensor([token])))


def _top_k(scores: Tensor, top_k: int) -> Tensor:
    """Exclude what is below the k-th best; equals of the k-th stay. 0 = no limit."""
    if top_k <= 0:
        return scores
    threshold = scores.topk(min(top_k, scores.shape[-1])).values[-1]
    return scores.masked_fill(scores < threshold, -torch.inf)


def _top_p(scores: Tensor, top_p: float) -> Tensor:
    """
    Keep the least set of best tokens whose probabilities sum up to ``top_p``; at least one.

    Of ``n`` candidates, those of at most (1 - top_p) / n together have no more than 1 - top_p, so
    they are excluded without being sorted: few are left, where sorting all takes milliseconds.
    """
    if top_p >= 1.0:
        return scores
    candidates = _candidates(scores)
    probabilities = scores[candidates].softmax(-1)
    unlikely = probabilities <= (1.0 - top_p) / len(candidates)
    likely = candidates[~unlikely]
    order = scores[likely].argsort()
    below = probabilities[unlikely].sum()
    excluded = probabilities[~unlikely][order].cumsum(-1) + below <= 1.0 - top_p
    excluded[-1:] = False
    scores = scores.index_fill(0, candidates[unlikely], -torch.inf)
    return scores.index_fill(0, likely[order[excluded]], -torch.inf)


def _candidates(scores: Tensor) -> Tensor:
    """Return the tokens that are not excluded yet, ascending."""
    return (scores > -torch.inf).nonzero()[:, 0]
