# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The prefill on CUDA: long chunks, for full speed, in slices of some layers, to be stopped between.

A chunk as long as the prompt is what the matrix products and the attention kernel like best, and
takes a second. Between any two half layers it can be left, so a slice ends after about
``SLICE_S``, whatever the prompt's length.
"""

import time
from typing import List, Optional

import torch
import torch.nn.functional as F

from timebill_ros.budget.kept import SNAPKV_WINDOW
from timebill_ros.engine.cuda.chunk_layers import ChunkLayers, padded
from timebill_ros.engine.cuda.eviction import KernelEviction
from timebill_ros.engine.cuda.prefill_graphs import PrefillGraphs
from timebill_ros.engine.eviction import PlainEviction
from timebill_ros.engine.kv_cache import KVCache
from timebill_ros.engine.sequence import Chunk, Sequence

SLICE_S = 0.020
# Prompts up to here are filled up to one of few lengths, each of which was met at the start: for
# every other one libraries would choose kernels, and the allocator take memory, anew.
_FILLED = (*range(128, 2048, 128), *range(2048, 4097, 256))
# Of a small model a new length of twice that still costs a tenth to a half of its prefill.
_FILLED_SMALL = (*_FILLED, *range(4608, 8193, 512))
_SMALL_PARAMETERS = 1_000_000_000
# Before anything was measured: slow, so that the very first slice is short even on a small GPU.
_FIRST_PACE = 5e12          # operations per second


class SlicedPrefill:
    """Prefills prompts in slices; short ones as graphs."""

    def __init__(self, layers: ChunkLayers, cache: KVCache, chunk_tokens: int, tap_layer: int,
                 graphs: Optional[PrefillGraphs]) -> None:
        """Take the parts; ``chunk_tokens`` is bounded by memory alone."""
        self._layers, self._cache, self._graphs = layers, cache, graphs
        self._chunk_tokens = chunk_tokens
        self._tap_layer = tap_layer
        self._device = layers.weights.embed.device
        self._pace = _FIRST_PACE
        self.eviction = (PlainEviction() if layers.kernels is None
                         else KernelEviction(layers.kernels))
        self._done = torch.cuda.Event() if self._device.type == 'cuda' else None

    @property
    def padded_lengths(self) -> List[int]:
        """Return the lengths to which short prompts are filled up, ascending."""
        graphs = [] if self._graphs is None else self._graphs.lengths
        return graphs + self._filled_lengths(graphs[-1] if graphs else 0)

    def advance(self, seq: Sequence) -> int:
        """Run the next slice, as ``Prefill`` says."""
        if self._graphs is not None and seq.n_prefilled == 0 and self._graphs.take(seq.n_prompt):
            self._graphs.run(seq, self._cache)
            seq.submitted(seq)
            self._wait()
            return seq.n_prompt
        if seq.chunk is None:
            seq.chunk = self._begin(seq)
        chunk = seq.chunk
        began_s, work = time.perf_counter(), 0.0
        last_half = 2 * self._layers.config.n_layers
        while chunk.half < last_half:
            more = work + self._work(chunk)
            if work > 0.0 and more > SLICE_S * self._pace:
                break
            self._run_half(seq, chunk)
            work = more
        count = chunk.count
        finished = chunk.half == last_half
        if finished:
            self._cache.advance(seq.slot, count)
            if seq.n_prefilled + count == seq.n_prompt:
                seq.logits = self._layers.logits(chunk.x[count - 1:count])
                seq.submitted(seq)
            seq.chunk = None
        self._wait()
        self._pace = work / (time.perf_counter() - began_s)
        return count if finished else 0

    def warm_up(self) -> None:
        """
        Have everything prepare itself for every length that it is done for, in slot 0.

        The longest comes first: what it takes from the device serves all others.
        """
        shortest = self._graphs.lengths[-1] + 1 if self._graphs and self._graphs.lengths else 1
        longest = min(self._chunk_tokens, self._cache.capacity)
        keys, values, config = self._cache.k[0, 0], self._cache.v[0, 0], self._layers.config
        for length in (longest, *self._filled_lengths(shortest - 1)):
            x = keys.new_zeros((length, config.d_model))
            self._layers.attend(0, x, keys, values, 0)
            self._layers.feed_forward(0, x)
            self._layers.logits(x[:1])
        rows = shortest
        while self._layers.kernels is not None and rows <= longest:
            rows = min(padded(rows), self._cache.capacity)
            queries = keys.new_zeros((rows, config.n_heads, config.head_dim))
            self._layers.attention(queries, keys, values, 0)
            rows += 1
        self._wait()

    def _begin(self, seq: Sequence) -> Chunk:
        ids = seq.prompt[seq.n_prefilled:seq.n_prefilled + self._chunk_tokens]
        start, count = self._cache.length[seq.slot], len(ids)
        if start == 0 and count == seq.n_prompt:
            # What fills up comes behind the prompt, where causal attention does not see it; the
            # response's entries overwrite it.
            length = next((n for n in self._filled_lengths() if n >= count), count)
            ids = ids + [0] * (length - count)
        x = F.embedding(torch.tensor(ids, device=self._device), self._layers.weights.embed)
        return Chunk(x, start, count)

    def _filled_lengths(self, above: int = 0) -> List[int]:
        """Return the lengths above ``above`` to which prompts without a graph are filled up."""
        if self._layers.kernels is None:
            return []
        limit = min(self._chunk_tokens, self._cache.capacity)
        small = self._layers.config.n_parameters <= _SMALL_PARAMETERS
        return [length for length in (_FILLED_SMALL if small else _FILLED)
                if above < length <= limit]

    def _run_half(self, seq: Sequence, chunk: Chunk) -> None:
        """Run half a layer."""
        index, second = divmod(chunk.half, 2)
        chunk.half += 1
        left = seq.n_prompt - seq.n_prefilled
        if second:
            self._layers.feed_forward(index, chunk.x)
            if index + 1 == self._tap_layer and chunk.count == left:
                seq.prompt_state = chunk.x[left - 1].to(torch.float32, copy=True)
                seq.state_submitted(seq)
            return
        keys, values = self._cache.k[index, seq.slot], self._cache.v[index, seq.slot]
        queries = self._layers.attend(index, chunk.x, keys, values, chunk.start)
        if left <= chunk.count + SNAPKV_WINDOW:
            newest = queries[max(0, chunk.count - SNAPKV_WINDOW):chunk.count]
            seq.window.push(index, newest.transpose(0, 1))

    def _work(self, chunk: Chunk) -> float:
        """Return the operations of the next half layer."""
        count, config = len(chunk.x), self._layers.config
        if chunk.half % 2:
            return 6.0 * count * config.d_model * config.d_ff
        width = config.n_heads * config.head_dim
        products = 4.0 * config.d_model * (width + config.n_kv_heads * config.head_dim)
        return count * (products + 4.0 * width * (chunk.start + count / 2))

    def _wait(self) -> None:
        """Wait for the GPU, busily as for a step; a failed kernel is reported here."""
        if self._done is not None:
            self._done.record()
            self._done.synchronize()
