# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Batched generation for collecting lengths: a row that ends makes room for the next prompt."""

import logging
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor
from transformers import DynamicCache

from timebill_ros.length_predictor.attention import SlotCache
from timebill_ros.length_predictor.target import batches_by_length, Target
from timebill_ros.query import Sampling

_CHECK_STEPS = 16           # decode steps between two looks at which rows have ended
_VISIBLE_STEP = 256         # attention looks at a multiple of so many positions
_REFILL_SHARE = 1 / 8       # rows are given to new prompts when so many of them are free
_SHRINK_SHARE = 1 / 2       # at the end the batch shrinks when no more than this share is in use
_PREFILL_TOKENS = 100_000   # in one forward pass
_LONG = 3                   # prompts that need more than 3 caps of room have a batch of their own

_LOG = logging.getLogger(__name__)

Done = Callable[[int, List[int]], None]     # index of a prompt, its response ids


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


class _Slots:
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
        self._graphs: Dict[int, torch.cuda.CUDAGraph] = {}
        self._recorded = device.type == 'cuda' and sampling.temperature == 0
        self.prompt: List[Optional[int]] = [None] * rows    # which prompt a row works on

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
        visible = min(-(-highest // _VISIBLE_STEP) * _VISIBLE_STEP, len(self._places))
        for _ in range(steps):
            self._advance(visible)

    def take_ended(self) -> List[Tuple[int, List[int]]]:
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


@torch.inference_mode()
def generate(
    target: Target,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    cap: int,
    max_rows: int = 1024,
    max_batch_tokens: int = 1_600_000,
    done: Done = lambda index, response: None,
) -> List[List[int]]:
    """
    Return each prompt's response ids, the end token included, at most ``cap`` of them.

    At most ``max_rows`` prompts are answered at once, with room for ``max_batch_tokens`` prompt
    and response tokens together; ``done`` is called for each as soon as its end has been seen.
    """
    answers: List[List[int]] = [[] for _ in prompts]
    limit = _LONG * cap
    groups: Tuple[List[int], List[int]] = ([], [])
    for index, ids in enumerate(prompts):
        groups[len(ids) + cap > limit].append(index)
    for group in groups:
        if not group:
            continue
        longest = max(len(prompts[i]) for i in group) + cap
        capacity = -(-longest // _VISIBLE_STEP) * _VISIBLE_STEP
        rows = max(1, min(max_rows, max_batch_tokens // capacity, len(group)))
        slots = _Slots(target, rows, capacity, sampling, cap)
        _work_off(slots, group, prompts, answers, done)
    return answers


def _work_off(
    slots: _Slots,
    group: List[int],
    prompts: Sequence[Sequence[int]],
    answers: List[List[int]],
    done: Done,
) -> None:
    waiting = sorted(group, key=lambda i: len(prompts[i]))      # the longest last: first to go
    while True:
        for row, response in slots.take_ended():
            index = slots.prompt[row]
            if index is not None:
                answers[index] = response
                done(index, response)
            slots.prompt[row] = None
        free = [row for row, prompt in enumerate(slots.prompt) if prompt is None]
        rows = len(slots.prompt)
        if waiting and len(free) >= max(1, _REFILL_SHARE * min(rows, len(waiting))):
            chosen = [waiting.pop() for _ in range(min(len(free), len(waiting)))]
            lengths = [len(prompts[i]) for i in chosen]
            for batch in batches_by_length(lengths, rows, _PREFILL_TOKENS, 0):
                taken = [free.pop() for _ in batch]
                slots.fill(taken, [prompts[chosen[i]] for i in batch])
                for row, i in zip(taken, batch):
                    slots.prompt[row] = chosen[i]
            continue        # an answer may be over with its first token
        if len(free) == rows:
            return
        if not waiting and rows - len(free) <= _SHRINK_SHARE * rows:
            slots.shrink()
        slots.run(_CHECK_STEPS)
