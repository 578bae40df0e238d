# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Prompts as CUDA graphs of padded lengths: what they take does not depend on the host's pace.

The padding comes behind the prompt, where causal attention does not see it. A graph writes keys,
values and scores into buffers of its own, from which they are copied to the sequence's slot, so one
graph serves every slot. A length has several graphs, each of some layers: between them a prompt can
be left, and whoever waits for the tapped state can begin.
"""

import bisect
from functools import partial
from typing import Callable, Optional

import torch
from torch import Tensor

from timebill_ros.budget.kept import SNAPKV_WINDOW
from timebill_ros.engine.config import ModelConfig
from timebill_ros.engine.cuda.chunk_layers import ChunkLayers, MAX_CHUNK, ROWS
from timebill_ros.engine.kv_cache import KVCache, wide
from timebill_ros.engine.sequence import Sequence
from timebill_ros.engine.snapkv import padded_scores

_STAIRS = (*range(64, 256, 64), *range(256, 2048, 128), *range(2048, 4096, 256),
           *range(4096, 8192, 512), *range(8192, MAX_CHUNK + 1, 1024))
# Parameters times tokens: what is longer keeps a GPU busy for much longer than launching takes.
# Not measured at the start, so that a stored profile holds at the next one.
_MOST_WORK = 32e12


def stairs(config: ModelConfig, most_tokens: int) -> list[int]:
    """Return the padded lengths, ascending, that a model has graphs for if there is room."""
    most = min(most_tokens, int(_MOST_WORK / config.n_parameters))
    return [length for length in _STAIRS if length <= most]


class Graph:
    """Some layers of a padded length, and how to run them."""

    def __init__(self, layers: range, work: float, run: Callable[[], None]) -> None:
        """Take the layers, their operations, and what puts them on their way."""
        self.layers, self.work, self.run = layers, work, run


class PrefillGraphs:
    """The graphs of all padded lengths, and the buffers that they share."""

    def __init__(self, layers: ChunkLayers, lengths: list[int], tap_layer: int,
                 most_work: float) -> None:
        """Reserve the buffers; a graph is to do ``most_work`` operations. Nothing is captured."""
        self.layers, self.tap_layer, self.lengths = layers, tap_layer, lengths
        c, embed = layers.config, layers.weights.embed
        cuts = {length: self._cut(length, most_work) for length in lengths}
        pieces = [(len(piece), length) for length, cut in cuts.items() for piece in cut]
        longest = max(lengths, default=0)
        most_layers = max((n_layers for n_layers, _ in pieces), default=0)
        rows = c.n_kv_heads * max((n_layers * length for n_layers, length in pieces), default=0)

        def buffer(*shape: int, dtype: torch.dtype = embed.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=embed.device)

        self._keys = buffer(rows * c.head_dim)
        self._values = buffer(rows * c.head_dim)
        self._queries = buffer(most_layers, SNAPKV_WINDOW, c.n_heads, c.head_dim)
        self._scores = buffer(rows, dtype=torch.float32)
        self.hidden = buffer(longest, c.d_model)
        self.logits = buffer(c.vocab_size)
        self.state = buffer(c.d_model, dtype=torch.float32)
        self.ids = buffer(longest, dtype=torch.long)
        self.last = buffer(1 + SNAPKV_WINDOW, dtype=torch.long)     # places: last token, window
        self._places = torch.arange(longest, device=embed.device)
        self.graphs: dict[int, list[Graph]] = {
            length: [Graph(piece, self._work(length, piece), partial(self._compute, length, piece))
                     for piece in cut] for length, cut in cuts.items()}

    def capture(self) -> None:
        """
        Replace the plain code by graphs of it.

        A length that takes longer than the next one is left out: of some the products are slow.
        """
        longest_first = [self.graphs[length] for length in reversed(self.lengths)]
        for graphs in longest_first:                # libraries set themselves up
            for graph in {len(graph.layers): graph for graph in graphs}.values():
                graph.run()
        torch.cuda.synchronize()
        pool = torch.cuda.graph_pool_handle()
        with torch.cuda.stream(torch.cuda.Stream()):
            for graph in (graph for graphs in longest_first for graph in graphs):
                graph.run = _recorded(graph.run, pool)
        self._leave_out({length: _seconds(self.graphs[length]) for length in self.lengths[::-1]})

    def _leave_out(self, seconds: dict[int, float]) -> None:
        """Forget the lengths that take no less than the next; prompts stay longer than half."""
        kept = self.lengths[-1:]
        for length, below in zip(self.lengths[-2::-1], [*self.lengths[-3::-1], 0]):
            if seconds[length] < seconds[kept[0]] or 2 * below < kept[0]:
                kept.insert(0, length)
        self.lengths = kept
        self.graphs = {length: self.graphs[length] for length in kept}

    def take(self, n_prompt: int) -> bool:
        """Tell whether a prompt of this length is run here."""
        return bool(self.lengths) and n_prompt <= self.lengths[-1]

    def buffers(self, length: int, n_layers: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return keys and values [n_layers, n_kv_heads, length, D], and scores likewise."""
        c = self.layers.config
        shape = (n_layers, c.n_kv_heads, length)
        rows = n_layers * c.n_kv_heads * length
        size = rows * c.head_dim
        return (self._keys[:size].view(*shape, -1), self._values[:size].view(*shape, -1),
                self._scores[:rows].view(shape))

    def _cut(self, length: int, most_work: float) -> list[range]:
        """Return the layers of each graph of a length: cut behind the tapped one, and by work."""
        n_layers = self.layers.config.n_layers
        step = max(1, int(most_work / self._work(length, range(1))))
        cuts = sorted({*range(0, n_layers, step), self.tap_layer, n_layers})
        return [range(first, end) for first, end in zip(cuts, cuts[1:])]

    def _work(self, length: int, piece: range) -> float:
        layers = self.layers
        return len(piece) * (layers.attend_work(length) + layers.feed_forward_work(length))

    def _compute(self, length: int, piece: range) -> None:
        """Take ``length`` tokens through the layers of a piece, all on the current stream."""
        layers = self.layers
        last, window = self.last[:1], self.last[1:]
        keys, values, scores = self.buffers(length, len(piece))
        x = self.hidden[:length]
        if piece.start == 0:
            torch.index_select(layers.weights.embed, 0, self.ids[:length], out=x)
        for place, index in enumerate(piece):
            queries = layers.attend(index, x, keys[place], values[place], 0)
            torch.index_select(queries.flatten(1), 0, window, out=self._queries[place].flatten(1))
            for rows in x.split(ROWS):
                layers.feed_forward(index, rows)
            if index + 1 == self.tap_layer:
                self.state.copy_(x.index_select(0, last)[0])
        scores.copy_(padded_scores(
            self._queries[:len(piece)].transpose(1, 2), keys, window, self._places[:length],
            length // 2 + 1, layers.scale))
        if piece.stop == layers.config.n_layers:
            self.logits.copy_(layers.logits(x.index_select(0, last)))


class GraphedPrompt:
    """A whole prompt on its way (``sliced_prefill.Pieces``); a piece is a graph."""

    def __init__(self, graphs: PrefillGraphs, cache: KVCache, seq: Sequence) -> None:
        """Begin with the whole prompt of ``seq``."""
        self._graphs, self._cache, self._seq = graphs, cache, seq
        self.count = seq.n_prompt
        self._length = graphs.lengths[bisect.bisect_left(graphs.lengths, self.count)]
        self._left = graphs.graphs[self._length]
        window = [max(0, place) for place in range(self.count - SNAPKV_WINDOW, self.count)]
        self._last = torch.tensor([self.count - 1, *window], pin_memory=graphs.hidden.is_cuda)
        self._hidden: Optional[Tensor] = None       # between two slices others use the buffers
        if self.count > SNAPKV_WINDOW:
            c = graphs.layers.config
            seq.scores = torch.empty(c.n_layers, c.n_kv_heads, self.count - SNAPKV_WINDOW,
                                     device=graphs.hidden.device)

    @property
    def next_work(self) -> float:
        """Operations of the next piece; 0 = none is left."""
        return self._left[0].work if self._left else 0.0

    def resume(self) -> None:
        """Bring into the graphs' buffers what the next piece takes in."""
        graphs = self._graphs
        graphs.last.copy_(self._last, non_blocking=True)
        graphs.ids[:self.count].copy_(self._seq.ids, non_blocking=True)
        if self._hidden is not None:
            graphs.hidden[:self._length].copy_(self._hidden)

    def run(self) -> None:
        """Put the next piece on its way."""
        graph, *self._left = self._left
        graph.run()
        graphs, seq, layers = self._graphs, self._seq, graph.layers
        keys, values, scores = graphs.buffers(self._length, len(layers))
        places = slice(layers.start, layers.stop)
        for stored, ours in ((self._cache.k, keys), (self._cache.v, values)):
            wide(stored)[places, seq.slot, :, :self.count] = wide(ours)[:, :, :self.count]
        if seq.scores is not None:
            seq.scores[places] = scores[..., :seq.scores.shape[-1]]
        if layers.stop == graphs.tap_layer:
            seq.prompt_state = graphs.state.clone()
            seq.state_submitted(seq)
        if not self._left:
            self._cache.advance(seq.slot, self.count)
            seq.logits = graphs.logits.clone()
            seq.choose_first(seq)
            seq.submitted(seq)

    def pause(self) -> None:
        """Save what the next slice goes on with."""
        if self._left:
            self._hidden = self._graphs.hidden[:self._length].clone()


def _seconds(graphs: list[Graph]) -> float:
    """Return what the graphs of a length take on the GPU, by the first of them."""
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    graphs[0].run()
    ended.record()
    ended.synchronize()
    share = graphs[0].work / sum(graph.work for graph in graphs)
    return 1e-3 * began.elapsed_time(ended) / share


def _recorded(run: Callable[[], None], pool: tuple[int, int]) -> Callable[[], None]:
    """Return what replays ``run``; not by torch.cuda.graph, which empties the cache every time."""
    graph = torch.cuda.CUDAGraph()
    graph.capture_begin(pool=pool)
    run()
    graph.capture_end()
    return graph.replay
