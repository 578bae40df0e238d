# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The prefill on CUDA: long chunks, for full speed, in slices, to be stopped between.

A chunk as long as the prompt is what the matrix products and the attention kernel like best, and
takes a second. It can be left between any two pieces, so a slice ends after about ``SLICE_S``,
whatever the prompt's length. While the host waits for a slice the next one is on its way already,
unless other sequences might want the device in between: so the device never waits for the host.
"""

from collections import deque
from dataclasses import dataclass, field
import time
from typing import Deque, Optional, Protocol

import torch

from timebill_ros.engine.cuda.chunk_layers import (
    attention_rows, ATTENTION_STAIR, ChunkLayers, ROWS)
from timebill_ros.engine.cuda.eviction import KernelEviction
from timebill_ros.engine.cuda.layered_chunk import LayeredChunk
from timebill_ros.engine.cuda.prefill_graphs import GraphedPrompt, PrefillGraphs
from timebill_ros.engine.eviction import PlainEviction
from timebill_ros.engine.kv_cache import KVCache
from timebill_ros.engine.sequence import Sequence

# Of a call, about. A cancel waits for a slice, and the device for the one behind it.
SLICE_S = 0.016
GRAPH_S = SLICE_S / 2       # of a graph, of which a slice has several


class Pieces(Protocol):
    """
    A chunk of a prompt on its way through the layers.

    The last piece counts its tokens in the cache and, of a prompt's last chunk, leaves the results.
    """

    count: int              # tokens

    @property
    def next_work(self) -> float:
        """Operations of the next piece; 0 = none is left."""

    def resume(self) -> None:
        """Prepare to go on after ``pause``, or to begin."""

    def run(self) -> None:
        """Put the next piece on its way, without waiting for it."""

    def pause(self) -> None:
        """Let other prompts have what is shared."""


@dataclass
class _Slice:
    """Some pieces that are on their way to the device."""

    work: float                             # operations
    began_s: float
    done: Optional[torch.cuda.Event]        # None on a CPU: it is over already

    def wait(self) -> None:
        """Wait for it, busily as for a step; a failed kernel is reported here."""
        if self.done is not None:
            self.done.synchronize()


@dataclass
class _Chunk:
    """A chunk and its slices that were not waited for."""

    pieces: Pieces
    slices: Deque[_Slice] = field(default_factory=deque)


class SlicedPrefill:
    """Prefills prompts in slices; those of padded lengths as graphs."""

    attention_stair = ATTENTION_STAIR

    def __init__(self, layers: ChunkLayers, cache: KVCache, chunk_tokens: int, tap_layer: int,
                 graphs: PrefillGraphs, pace: float) -> None:
        """Take the parts; ``chunk_tokens`` is bounded by memory; ``pace``: operations a second."""
        self._layers, self._cache, self.graphs = layers, cache, graphs
        self._chunk_tokens = chunk_tokens
        self._tap_layer = tap_layer
        self._pace = pace
        self._cuda = layers.weights.embed.is_cuda
        self._ended_s = 0.0                         # the newest slice, as far as the host knows
        self._ahead: Optional[_Slice] = None        # the newest that was put on its way
        self.eviction = (PlainEviction() if layers.kernels is None
                         else KernelEviction(layers.kernels))

    @property
    def padded_lengths(self) -> list[int]:
        """Return the lengths to which short prompts are filled up, ascending."""
        return self.graphs.lengths

    def begin(self, seq: Sequence) -> None:
        """Put the first slice on its way, as ``Prefill`` says."""
        seq.under_way = _Chunk(self._pieces(seq))
        seq.under_way.slices.append(self._submit(seq.under_way.pieces))

    def advance(self, seq: Sequence, alone: bool = False) -> int:
        """Run the next slice, as ``Prefill`` says."""
        if seq.under_way is None:
            self.begin(seq)
        chunk: _Chunk = seq.under_way
        if not chunk.slices:
            chunk.slices.append(self._submit(chunk.pieces))
        if alone and chunk.pieces.next_work:
            chunk.slices.append(self._submit(chunk.pieces))
        self._collect(chunk)
        if chunk.slices or chunk.pieces.next_work:
            return 0
        seq.under_way = None
        return chunk.pieces.count

    def settle(self) -> None:
        """Wait for what is on its way, if anything is: another sequence wants the device."""
        if self._ahead is not None:
            self._ahead.wait()

    def _pieces(self, seq: Sequence) -> Pieces:
        if seq.n_prefilled == 0 and self.graphs.take(seq.n_prompt):
            return GraphedPrompt(self.graphs, self._cache, seq)
        return LayeredChunk(
            self._layers, self._cache, self._tap_layer, seq, self._chunk_tokens)

    def _submit(self, pieces: Pieces) -> _Slice:
        """Put the next slice on its way: as many pieces as take SLICE_S, or one."""
        work, began_s = 0.0, time.perf_counter()
        pieces.resume()
        while (more := pieces.next_work) and (not work or work + more <= SLICE_S * self._pace):
            pieces.run()
            work += more
        pieces.pause()
        done = torch.cuda.Event() if self._cuda else None
        if done is not None:
            done.record()
        self._ahead = _Slice(work, began_s, done)
        return self._ahead

    def _collect(self, chunk: _Chunk) -> None:
        """Wait for the oldest slice."""
        oldest = chunk.slices.popleft()
        oldest.wait()
        if self._ahead is oldest:
            self._ahead = None
        began_s, self._ended_s = max(oldest.began_s, self._ended_s), time.perf_counter()
        if chunk.slices or chunk.pieces.next_work:      # the last one may be short
            self._pace = oldest.work / (self._ended_s - began_s)


def warm_up(layers: ChunkLayers, cache: KVCache, chunk_tokens: int) -> float:
    """
    Have libraries prepare themselves for a long chunk, in slot 0; returns its operations a second.

    That also takes the memory that serves all shorter ones from the device.
    """
    keys, values, config = cache.k[0, 0], cache.v[0, 0], layers.config
    count = min(chunk_tokens, cache.capacity)
    x = keys.new_zeros((count, config.d_model))
    for _ in range(2):
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        layers.attend(0, x, keys, values, 0)
        for rows in x.split(ROWS):
            layers.feed_forward(0, rows)
        torch.cuda.synchronize()
        took_s = time.perf_counter() - began_s
    layers.logits(x[:1])
    return (layers.attend_work(count) + layers.feed_forward_work(count)) / took_s


def prepare_attention(layers: ChunkLayers, cache: KVCache, shortest: int, longest: int) -> None:
    """Have attention prepared for every length that chunks of so many tokens have."""
    keys, values, config = cache.k[0, 0], cache.v[0, 0], layers.config
    count = shortest
    while count <= min(longest, cache.capacity):
        rows = min(attention_rows(count), cache.capacity)
        queries = keys.new_zeros((rows, config.n_heads, config.head_dim))
        layers.attention(queries, keys, values, 0)
        count = rows + 1
    torch.cuda.synchronize()
