# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Short prompts as CUDA graphs of padded lengths: there, launching kernels takes longer than they do.

The padding comes behind the prompt, where causal attention does not see it. A graph writes keys,
values and the last queries into buffers of its own, from which they are copied to the sequence's
slot, so one graph serves every slot. Where a layer is tapped, a length has two graphs, and whoever
waits for the tapped state can begin between them.
"""

import bisect
from functools import partial
import time
from typing import Callable, Dict, List, Tuple

import torch
from torch import Tensor

from timebill_ros.budget.kept import SNAPKV_WINDOW
from timebill_ros.engine.cuda.chunk_layers import ChunkLayers
from timebill_ros.engine.kv_cache import KVCache, wide
from timebill_ros.engine.sequence import Sequence

LENGTHS = (64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
_TRIALS = 3


class PrefillGraphs:
    """Graphs of whole short prompts, one for each padded length that is worth it."""

    def __init__(self, layers: ChunkLayers, max_tokens: int, tap_layer: int) -> None:
        """Reserve the buffers for prompts of up to ``max_tokens``; nothing is captured yet."""
        self._layers, self._tap_layer = layers, tap_layer
        c, embed = layers.config, layers.weights.embed
        self._max_tokens = max_tokens
        cut = tap_layer or c.n_layers
        # the layers of each piece: up to the tapped one, and the rest
        self._pieces = [range(cut)] + ([range(cut, c.n_layers)] if cut < c.n_layers else [])

        def buffer(*shape: int, dtype: torch.dtype = embed.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=embed.device)

        self._keys = buffer(c.n_layers, c.n_kv_heads, max_tokens, c.head_dim)
        self._values = torch.zeros_like(self._keys)
        self._queries = buffer(c.n_layers, SNAPKV_WINDOW, c.n_heads, c.head_dim)
        self._hidden = buffer(max_tokens, c.d_model)
        self._logits = buffer(c.vocab_size)
        self._state = buffer(c.d_model, dtype=torch.float32)
        # ids, then the place of the last token, then those of the window
        self._inputs = buffer(max_tokens + 1 + SNAPKV_WINDOW, dtype=torch.long)
        self._inputs_host = torch.zeros(self._inputs.shape, dtype=torch.long)
        if embed.device.type == 'cuda':
            self._inputs_host = self._inputs_host.pin_memory()
        self._runs: Dict[int, List[Callable[[], None]]] = {}

    @property
    def lengths(self) -> List[int]:
        """Padded lengths that there are graphs for, ascending."""
        return list(self._runs)

    def take(self, n_prompt: int) -> bool:
        """Tell whether a prompt of this length is run here."""
        return bool(self._runs) and n_prompt <= self.lengths[-1]

    def capture(self) -> None:
        """
        Capture the lengths that are worth it; takes a second at most.

        That is, whose graph is faster than the plain code is for the shortest prompt that they
        serve; the first that is not ends it.
        """
        pool = torch.cuda.graph_pool_handle()
        shorter = 1
        for length in (each for each in LENGTHS if each <= self._max_tokens):
            plain = self._plain(shorter)
            _run(plain), _run(self._plain(length))      # libraries set themselves up
            recorded = [_recorded(piece, pool) for piece in self._plain(length)]
            if _best_s(recorded) > _best_s(plain):
                break
            self._runs[length] = recorded
            shorter = length

    def use_plain(self, lengths: List[int]) -> None:
        """Serve these padded lengths without graphs: what tests on a CPU do."""
        for length in lengths:
            self._runs[length] = self._plain(length)

    def run(self, seq: Sequence, cache: KVCache) -> None:
        """Prefill a whole prompt into its slot; leaves logits, queries and state in ``seq``."""
        count = seq.n_prompt
        length = self.lengths[bisect.bisect_left(self.lengths, count)]
        last = torch.arange(count - SNAPKV_WINDOW, count).clamp_min_(0)
        host, end = self._inputs_host, self._max_tokens
        host[:count] = torch.tensor(seq.prompt)
        host[end] = count - 1
        host[end + 1:] = last
        self._inputs.copy_(host, non_blocking=True)
        for layers, run in zip(self._pieces, self._runs[length]):
            run()
            if layers.stop == self._tap_layer:
                seq.prompt_state = self._state.clone()
                seq.state_submitted(seq)
        for stored, ours in ((cache.k, self._keys), (cache.v, self._values)):
            wide(stored)[:, seq.slot, :, :count] = wide(ours)[:, :, :count]
        cache.advance(seq.slot, count)
        seq.window.queries.copy_(self._queries.transpose(1, 2))
        seq.logits = self._logits.clone()

    def _plain(self, length: int) -> List[Callable[[], None]]:
        return [partial(self._compute, length, piece) for piece in self._pieces]

    def _compute(self, length: int, piece: range) -> None:
        """Take ``length`` tokens through the layers of a piece, all on the current stream."""
        layers, end = self._layers, self._max_tokens
        last, window = self._inputs[end:end + 1], self._inputs[end + 1:].clamp_max(length - 1)
        x = self._hidden[:length]
        if piece.start == 0:
            torch.index_select(layers.weights.embed, 0, self._inputs[:length], out=x)
        for index in piece:
            queries = layers.attend(index, x, self._keys[index, :, :length],
                                    self._values[index, :, :length], 0)
            torch.index_select(queries.flatten(1), 0, window, out=self._queries[index].flatten(1))
            layers.feed_forward(index, x)
            if index + 1 == self._tap_layer:
                self._state.copy_(x.index_select(0, last)[0])
        if piece.stop == layers.config.n_layers:
            self._logits.copy_(layers.logits(x.index_select(0, last)))


def _recorded(piece: Callable[[], None], pool: Tuple[int, int]) -> Callable[[], None]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        piece()
    return graph.replay


def _run(pieces: List[Callable[[], None]]) -> None:
    for piece in pieces:
        piece()


def _best_s(pieces: List[Callable[[], None]]) -> float:
    """Return the shortest time of a few runs, GPU included."""
    times = []
    for _ in range(_TRIALS):
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        _run(pieces)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began_s)
    return min(times)
