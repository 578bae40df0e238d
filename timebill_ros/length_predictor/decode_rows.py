# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Rows that decode in step, each with a prompt of its own: what collecting lengths runs on."""

import logging
from typing import Optional, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from timebill_ros.length_predictor.attention import SlotCache
from timebill_ros.length_predictor.target import Target
from timebill_ros.length_predictor.token_chooser import TokenChooser
from timebill_ros.query import Sampling

VISIBLE_STEP = 256          # attention looks at a multiple of so many positions

_LOG = logging.getLogger(__name__)


class DecodeRows:
    """
    A batch of rows that decode in step, each with a prompt of its own; all buffers are fixed.

    A row's answer follows its prompt in the cache without a gap, so that a position is a place
    in the buffer. Rows without a prompt decode nonsense, which is thrown away.
    """

    def __init__(
        self, target: Target, rows: int, capacity: int, sampling: Sampling, cap: int
    ) -> None:
        device = target.device
        vocab_size = target.model.config.vocab_size
        self._target, self._cap = target, cap
        self._decoder = target.model.get_decoder()
        self._head = target.model.get_output_embeddings()
        self._ends = torch.tensor(target.eos_ids, device=device)
        self._cache = SlotCache(target.model, rows, capacity)
        self._chooser = TokenChooser(sampling, rows, vocab_size, device)
        self._places = torch.arange(capacity, device=device)
        self._token = torch.zeros(rows, dtype=torch.long, device=device)
        self._position = torch.zeros(rows, dtype=torch.long, device=device)
        self._count = torch.zeros(rows, dtype=torch.long, device=device)
        self._alive = torch.zeros(rows, dtype=torch.bool, device=device)
        # the last column takes what rows without a prompt write
        self._out = torch.zeros(rows, cap + 1, dtype=torch.long, device=device)
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._recorded = device.type == 'cuda' and sampling.temperature == 0
        self.prompt: list[Optional[int]] = [None] * rows    # which prompt a row works on

    def fill(self, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
        """Prefill prompts of similar length into rows and choose their first tokens."""
        device = self._target.device
        n_prompt = torch.tensor([len(ids) for ids in prompts], device=device)
        width = int(n_prompt.max())
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt)
        cache = DynamicCache(config=self._target.model.config)
        states = self._decoder(
            input_ids=ids.to(device), past_key_values=cache, use_cache=True
        ).last_hidden_state
        logits = self._head(states[torch.arange(len(prompts), device=device), n_prompt - 1])
        at = torch.tensor(rows, device=device)
        self._cache.copy(cache, at, width)
        self._chooser.start(rows, prompts)
        seen = self._chooser.seen[at]
        token = self._chooser.choose(logits, seen)
        self._chooser.seen[at] = seen
        self._token[at], self._position[at] = token, n_prompt
        self._out[at, 0], self._count[at] = token, 1
        self._alive[at] = ~self._is_end(token) & (self._cap > 1)

    def run(self, steps: int) -> None:
        """Decode ``steps`` tokens in every row that has not ended."""
        highest = int(torch.where(self._alive, self._position, 0).max()) + steps
        visible = min(-(-highest // VISIBLE_STEP) * VISIBLE_STEP, len(self._places))
        for _ in range(steps):
            self._advance(visible)

    def take_ended(self) -> list[tuple[int, list[int]]]:
        """Return the rows that have ended, by number, with their responses, and free them."""
        busy = [row for row, prompt in enumerate(self.prompt) if prompt is not None]
        alive, count = self._alive.tolist(), self._count.tolist()
        ended = [row for row in busy if not alive[row]]
        out = self._out[torch.tensor(ended, dtype=torch.long, device=self._out.device)].tolist()
        return [(row, ids[: count[row]]) for row, ids in zip(ended, out)]

    def shrink(self) -> None:
        """Keep only the rows that work on a prompt."""
        kept = [row for row, prompt in enumerate(self.prompt) if prompt is not None]
        at = torch.tensor(kept, device=self._target.device)
        self._graphs.clear()
        self._cache.select(at)
        self._chooser.seen = self._chooser.seen[at]
        self._token, self._position, self._count, self._alive, self._out = (
            t[at] for t in (self._token, self._position, self._count, self._alive, self._out)
        )
        self.prompt = [self.prompt[row] for row in kept]

    def _advance(self, visible: int) -> None:
        """Do one step; on a GPU it is recorded once and replayed, a launch for all its kernels."""
        if not self._recorded:
            self._step(visible)
        elif visible in self._graphs:
            self._graphs[visible].replay()
        else:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                self._step(visible)         # a step like any other, and the warm-up
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    self._step(visible)         # recorded, not run
                self._graphs[visible] = graph
            except RuntimeError as error:       # a model whose step does something unrecordable
                _LOG.warning('decode steps are not recorded: %s', error)
                self._recorded = False

    def _is_end(self, token: Tensor) -> Tensor:
        return (token[:, None] == self._ends).any(-1)

    def _step(self, visible: int) -> None:
        self._cache.position, self._cache.visible = self._position, visible
        seen_places = self._places[:visible] <= self._position[:, None]
        logits = self._target.model(
            input_ids=self._token[:, None],
            attention_mask=seen_places[:, None, None],
            position_ids=self._position[:, None],
            past_key_values=self._cache,
            use_cache=True,
        ).logits[:, -1]
        token = self._chooser.choose(logits, self._chooser.seen)
        column = self._cap + (self._count - self._cap) * self._alive
        self._out.scatter_(1, column[:, None], token[:, None])
        self._count.add_(self._alive)
        self._token.copy_(token)
        self._alive.logical_and_(~self._is_end(token) & (self._count < self._cap))
        self._position.add_(self._alive)
