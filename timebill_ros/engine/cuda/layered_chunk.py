# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A chunk of a long prompt on its way through the layers, kernel by kernel."""

import torch
import torch.nn.functional as F

from timebill_ros.budget.kept import SNAPKV_WINDOW
from timebill_ros.engine.cuda.chunk_layers import ChunkLayers, ROWS
from timebill_ros.engine.kv_cache import KVCache
from timebill_ros.engine.sequence import Sequence
from timebill_ros.engine.snapkv import prompt_scores


class LayeredChunk:
    """
    A chunk that can be left between any two pieces (``sliced_prefill.Pieces``).

    A piece is the attention of a layer, or the feed-forward of ROWS tokens.
    """

    def __init__(self, layers: ChunkLayers, cache: KVCache, tap_layer: int, seq: Sequence,
                 chunk_tokens: int) -> None:
        """Begin with the prompt's next ``chunk_tokens``, or what is left of it."""
        self._layers, self._cache, self._tap_layer, self._seq = layers, cache, tap_layer, seq
        ids = seq.ids[seq.n_prefilled:seq.n_prefilled + chunk_tokens]
        embed = layers.weights.embed
        self.count = len(ids)
        self._left = seq.n_prompt - seq.n_prefilled       # tokens of the prompt, these included
        self._start = cache.length[seq.slot]
        self._x = F.embedding(ids.to(embed.device, non_blocking=True), embed)
        self._rows = self._x.split(ROWS)
        self._layer, self._part = 0, 0

    @property
    def next_work(self) -> float:
        """Operations of the next piece; 0 = none is left."""
        if self._layer == self._layers.config.n_layers:
            return 0.0
        if self._part == 0:
            return self._layers.attend_work(self.count, self._start)
        return self._layers.feed_forward_work(len(self._rows[self._part - 1]))

    def resume(self) -> None:
        """Nothing is shared with other prompts."""

    def run(self) -> None:
        """Put the next piece on its way."""
        if self._part == 0:
            self._attend()
        else:
            self._layers.feed_forward(self._layer, self._rows[self._part - 1])
        self._part += 1
        if self._part > len(self._rows):
            self._layer, self._part = self._layer + 1, 0
            self._layer_done()

    def pause(self) -> None:
        """Nothing is shared with other prompts."""

    def _attend(self) -> None:
        index, slot = self._layer, self._seq.slot
        queries = self._layers.attend(
            index, self._x, self._cache.k[index, slot], self._cache.v[index, slot], self._start)
        if self._left <= self.count + SNAPKV_WINDOW:
            newest = queries[max(0, self.count - SNAPKV_WINDOW):]
            self._seq.window.push(index, newest.transpose(0, 1))

    def _layer_done(self) -> None:
        """Take what is wanted of the prompt's last token, and its scores."""
        seq = self._seq
        if self._layer == self._layers.config.n_layers:
            self._cache.advance(seq.slot, self.count)
        if self.count < self._left:
            return
        if self._layer == self._tap_layer:
            seq.prompt_state = self._x[-1].to(torch.float32, copy=True)
            seq.state_submitted(seq)
        if self._layer == self._layers.config.n_layers:
            seq.logits = self._layers.logits(self._x[-1:])
            if seq.n_prompt > SNAPKV_WINDOW:
                keys = self._cache.k[:, seq.slot, :, :seq.n_prompt]
                seq.scores = prompt_scores(seq.window, keys, self._layers.scale)
            seq.choose_first(seq)
            seq.submitted(seq)
