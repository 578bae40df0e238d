# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The choice of the next token: what transformers' processors compute, in their order."""

import math
from typing import Optional

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

    def __init__(self, sampling: Sampling, prompt: list[int], device: torch.device) -> None:
        """Start a sequence; the same seed gives the same draws."""
        self.sampling = sampling
        self._generator = None
        if not sampling.greedy:
            self._generator = torch.Generator(device)
            if sampling.seed is None:
                self._generator.seed()
            else:
                self._generator.manual_seed(sampling.seed)
        self._prompt, self._device = prompt, device
        self._seen: Optional[Tensor] = None     # ids of prompt and response, but the newer ones
        self._newer: list[int] = []
        self._begun: Optional[Tensor] = None    # the first token and its score

    def begin(self, logits: Tensor, prompt: Tensor) -> Optional[Tensor]:
        """
        Put the choice of the first token on its way on a GPU; returns it there, int64 [].

        ``choose`` takes it then, once the device is done. ``prompt`` is there as well. None: this
        choice cannot be made without waiting, and is left to ``choose``.
        """
        self._seen = prompt
        if self._generator is not None:
            return None
        score, token = self._penalised(logits).max(0)
        begun = torch.empty(2, dtype=torch.float64, pin_memory=logits.is_cuda)
        self._begun = begun.copy_(torch.stack((token.double(), score.double())), non_blocking=True)
        return token

    def choose(self, logits: Tensor) -> int:
        """
        Return the next token, given the logits [vocab_size] after the newest one.

        Raises NotFinite if one of them is NaN, or the best of them not finite.
        """
        if self._begun is not None:
            (token, score), self._begun = self._begun.tolist(), None
            return self._taken(int(token), score)
        scores = self._penalised(logits)
        best = int(scores.argmax())             # of a NaN, if there is one
        if self._generator is None or not math.isfinite(scores[best]):
            return self._taken(best, float(scores[best]))
        return self._taken(self._draw(self._warped(scores)), 0.0)

    def _taken(self, token: int, score: float) -> int:
        if not math.isfinite(score):
            raise NotFinite
        self._newer.append(token)
        return token

    def process(self, logits: Tensor) -> Tensor:
        """Return the scores [vocab_size], float32, that the choice is made from."""
        return self._warped(self._penalised(logits))

    def _penalised(self, logits: Tensor) -> Tensor:
        scores = logits.float()
        penalty = self.sampling.repetition_penalty
        if penalty == 1.0:
            return scores
        seen = self._seen_ids()
        found = scores[seen]
        found = torch.where(found < 0, found * penalty, found / penalty)
        return scores.index_copy(0, seen, found)

    def _seen_ids(self) -> Tensor:
        """Return the ids of prompt and response; one may be there twice."""
        if self._seen is None:
            self._newer = [*set(self._prompt), *self._newer]
            self._seen = torch.empty(0, dtype=torch.long, device=self._device)
        if self._newer:
            self._seen = torch.cat((self._seen, self._seen.new_tensor(self._newer)))
            self._newer = []
        return self._seen

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
