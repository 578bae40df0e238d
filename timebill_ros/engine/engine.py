# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The engine: a loaded model that prefills, evicts and decodes the sequences it is given. One thread uses it."""

from typing import List, Optional, Tuple, TYPE_CHECKING

import torch

from timebill_ros.budget.kept import kept_tokens, SNAPKV_WINDOW
from timebill_ros.engine.decoder import Decoder
from timebill_ros.engine.defaults import default_sampling, sampling_fields
from timebill_ros.engine.errors import EngineError, OutOfMemory, PromptTooLong
from timebill_ros.engine.kv_cache import allocate, kv_bytes_per_token
from timebill_ros.engine.loading import (
    device_name,
    engine_version,
    load_model,
    LoadedModel,
    model_key,
    Report,
)
from timebill_ros.engine.memory import available_bytes, gibibytes, out_of_memory_as_ours
from timebill_ros.engine.rope import rope_table, RopeTable
from timebill_ros.engine.sampling import Sampler
from timebill_ros.engine.sequence import Sequence
from timebill_ros.engine.snapkv import kept_positions, QueryWindow
from timebill_ros.engine.text import ResponseText
from timebill_ros.executor.messages import Load, ModelInfo
from timebill_ros.paths import cache_dir
from timebill_ros.query import Sampling, Turn

if TYPE_CHECKING:
    from timebill_ros.engine.cuda.runner import StepRunner
    from timebill_ros.engine.cuda.tiers import Tier

_TIER_OF = {torch.float32: 'fp32', torch.bfloat16: 'bf16', torch.float16: 'fp16'}
_CPU_PREFILL_CHUNK = 256        # tokens; a chunk cannot be interrupted, and on a CPU takes a good part of a second
_CUDA_PREFILL_CHUNK = 2048
_MEMORY_KEPT_FREE = 0.1         # share of the free memory that the KV cache leaves to activations and to others


class Engine:
    """
    A model in memory and the calls that move sequences through it.

    ``open``, then ``prefill_chunk`` until it says done, ``evict`` if wanted, ``next_token``, then ``decode_step``
    until the caller has enough, and ``close``. After any error the sequence must be closed and the engine goes on.
    ``tokenize`` and ``response_text`` may be called from another thread.
    """

    def __init__(self, model: LoadedModel, load: Load) -> None:
        """Prepare the cache and the tables; ``Engine.load`` is the usual way."""
        self._config = model.config
        self._codec = model.codec
        self.device = model.device
        self.notes = list(model.notes)
        self._token_bytes = kv_bytes_per_token(model.config, model.dtype)
        self._memory_limit = load.kv_memory_bytes
        limit = load.max_context or model.config.max_positions
        max_context = min(limit, model.config.max_positions)
        with torch.inference_mode(), out_of_memory_as_ours('quantising', self.device):
            tiers = self._make_tiers(model, load)
        capacity = self._capacity(max_context)
        with torch.inference_mode(), out_of_memory_as_ours('reserving the KV cache', self.device):
            self._cache = allocate(model.config, 1, capacity, model.dtype, self.device)
            rope = rope_table(model.config, max_context, self.device)
            self._decoder = Decoder(model.config, model.weights, rope, self._cache)
            self._runner = self._make_runner(model, load, tiers, rope)
            self._window = QueryWindow(
                model.config.n_layers, model.config.n_heads, model.config.head_dim, model.dtype, self.device)
        self._free_slots = list(range(self._cache.n_slots))
        self._touched_tokens = 0        # of a CPU's cache: pages that are ours already
        self.chunk_tokens = load.prefill_chunk or (
            _CPU_PREFILL_CHUNK if self.device.type == 'cpu' else _CUDA_PREFILL_CHUNK)
        self._scale = float(model.config.head_dim ** -0.5)
        self.info = ModelInfo(
            name=model.source.name, key=model_key(model.source), family=model.config.family,
            device=device_name(self.device), dtype=str(model.dtype).split('.')[1],
            tiers=self._runner.tiers if self._runner else [_TIER_OF[model.dtype]],
            n_layers=model.config.n_layers, n_heads=model.config.n_heads, n_kv_heads=model.config.n_kv_heads,
            head_dim=model.config.head_dim, vocab_size=model.config.vocab_size, max_context=max_context,
            n_max=load.n_max, kv_bytes_per_token=self._token_bytes,
            sampling=sampling_fields(default_sampling(model.source.name, model.source.directory)),
            engine_version=engine_version())

    @staticmethod
    def load(load: Load, report: Report = lambda what, fraction: None) -> 'Engine':
        """Load a model; ``report`` gets what is being done and a fraction. Raises ModelError or OutOfMemory."""
        return Engine(load_model(load, report), load)

    # --- text -------------------------------------------------------------------------------------------------

    def tokenize(self, messages: List[Turn]) -> List[int]:
        """Return the ids of a conversation up to where the answer starts; raises EngineError with the reason."""
        return self._codec.encode_chat(messages)

    def response_text(self, stop: List[str]) -> ResponseText:
        """Return the text side of a new response."""
        return ResponseText(self._codec, stop)

    @property
    def end_ids(self) -> Tuple[int, ...]:
        """The tokens that end a response."""
        return self._config.eos_ids

    # --- one sequence -----------------------------------------------------------------------------------------

    def kv_bytes_needed(self, n_tokens: int) -> int:
        """Return the cache memory of a sequence of ``n_tokens``, prompt and response."""
        return n_tokens * self._token_bytes

    def check_memory(self, n_tokens: int) -> None:
        """Raise OutOfMemory if the cache of a sequence of ``n_tokens``, prompt and response, does not fit."""
        need, have = self.kv_bytes_needed(n_tokens), self.kv_bytes_needed(self._cache.capacity)
        if self.device.type == 'cpu' and need <= have:
            ours = self.kv_bytes_needed(self._touched_tokens)
            have = min(have, ours + int((1.0 - _MEMORY_KEPT_FREE) * available_bytes(self.device)))
        if need > have:
            limit = ' (kv_memory_bytes)' if self._memory_limit else ''
            raise OutOfMemory(f'{n_tokens} tokens of prompt and response need {gibibytes(need)} of KV cache; '
                              f'there are {gibibytes(have)}{limit}')

    @property
    def device_memory_bytes(self) -> int:
        """Memory held on an accelerator; 0 on a CPU."""
        return torch.cuda.memory_reserved(self.device) if self.device.type == 'cuda' else 0

    def check_device(self) -> None:
        """Raise if the accelerator is out of order: after a failed kernel nothing works on it any more."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def open(self, ids: List[int], capacity: int, sampling: Optional[Sampling] = None) -> Sequence:
        """
        Start a sequence that may grow to ``capacity`` tokens (prompt and response; cut to the context).

        Raises PromptTooLong, or OutOfMemory before any work if its cache does not fit.
        """
        if not ids:
            raise EngineError('the prompt has no tokens')
        if len(ids) + 1 > self.info.max_context:
            raise PromptTooLong(
                f'the prompt has {len(ids)} tokens; with one token of answer it exceeds the context of '
                f'{self.info.max_context} tokens')
        capacity = max(len(ids) + 1, min(capacity, self.info.max_context))
        self.check_memory(capacity)
        if not self._free_slots:
            raise EngineError('every slot of the KV cache is in use')
        sampler = Sampler(sampling or Sampling(), ids, self.device)
        slot = self._free_slots.pop()
        self._cache.reset(slot)
        return Sequence(slot=slot, prompt=list(ids), capacity=capacity, sampler=sampler, window=self._window)

    @torch.inference_mode()
    def assume_prefilled(self, seq: Sequence, n_tokens: int) -> None:
        """
        Take the first ``n_tokens`` of the prompt as prefilled, with noise in the cache in their place.

        For measuring: a step or a chunk takes the same time whatever the cached values are, as long as they are
        ordinary numbers.
        """
        self._check_open(seq)
        if n_tokens > self._touched_tokens:     # what was written before is ordinary already
            self._cache.write_noise(seq.slot, self._touched_tokens, n_tokens)
        self._cache.reset(seq.slot)
        self._cache.advance(seq.slot, n_tokens)
        seq.n_prefilled = seq.kept = n_tokens
        self._touched_tokens = max(self._touched_tokens, n_tokens)

    @torch.inference_mode()
    def prefill_chunk(self, seq: Sequence) -> bool:
        """Run the next chunk of the prompt; returns whether the prompt is done."""
        self._check_open(seq)
        ids = seq.prompt[seq.n_prefilled:seq.n_prefilled + self.chunk_tokens]
        if not ids:
            return True
        last = seq.n_prefilled + len(ids) == seq.n_prompt
        with out_of_memory_as_ours('prefill', self.device):
            near_end = seq.n_prompt - seq.n_prefilled <= self.chunk_tokens + SNAPKV_WINDOW
            window = seq.window if near_end else None
            chunk = torch.tensor(ids, device=self.device)
            seq.logits = self._decoder.prefill_chunk(seq.slot, chunk, window, last)
            if self.device.type == 'cuda':
                torch.cuda.current_stream(self.device).synchronize()
        seq.n_prefilled += len(ids)
        seq.kept = self._cache.length[seq.slot]
        self._touched_tokens = max(self._touched_tokens, seq.kept)
        return last

    @torch.inference_mode()
    def evict(self, seq: Sequence, alpha: float) -> int:
        """
        Evict the share ``alpha`` of the prompt by SnapKV; returns the positions kept (``budget.kept``).

        Only between the prefill and the first decode step, once.
        """
        self._check_open(seq)
        n_kept = kept_tokens(seq.n_prompt, alpha)
        if n_kept >= seq.n_prompt:
            return seq.kept
        if not seq.prefill_done or seq.window is None or seq.kept < seq.n_prompt:
            raise EngineError('eviction comes once, after the prefill and before the first decode step')
        with out_of_memory_as_ours('eviction', self.device):
            keys = [layer[seq.slot, :, :seq.n_prompt] for layer in self._cache.k]
            self._cache.keep(seq.slot, kept_positions(seq.window, keys, self._scale, n_kept))
            if self.device.type == 'cuda':
                torch.cuda.current_stream(self.device).synchronize()
        seq.kept = n_kept
        return n_kept

    @torch.inference_mode()
    def next_token(self, seq: Sequence) -> int:
        """Choose the first token of the response from the prefill's logits; no forward pass."""
        self._check_open(seq)
        if seq.logits is None:
            raise EngineError('the first token comes once, after the prefill')
        token = seq.sampler.choose(seq.logits)
        seq.logits = None
        seq.tokens.append(token)
        return token

    @torch.inference_mode()
    def decode_step(self, seqs: List[Sequence], tier: str = '') -> List[int]:
        """
        Run the newest token of each sequence and choose the next; one forward pass for all of them.

        ``tier`` is one of ``info.tiers`` ('' = the first) and may be another one at every step.
        """
        for seq in seqs:
            self._check_open(seq)
            if not seq.tokens:
                raise EngineError('decode_step comes after next_token')
            if seq.n_prompt + len(seq.tokens) >= seq.capacity:
                raise EngineError(f'the sequence has reached its capacity of {seq.capacity} tokens')
        with out_of_memory_as_ours('decode step', self.device):
            slots = [seq.slot for seq in seqs]
            if self._runner is not None:
                for seq in seqs:
                    if len(seq.tokens) == 1:
                        self._runner.start(seq.slot, seq.tokens[0], seq.sampler.sampling, seq.prompt)
                chosen = self._runner.step(tier or self.info.tiers[0], slots)
            else:
                ids = torch.tensor([seq.tokens[-1] for seq in seqs], device=self.device)
                logits = self._decoder.step(slots, ids)
                chosen = [seq.sampler.choose(row) for seq, row in zip(seqs, logits)]
        for seq, token in zip(seqs, chosen):
            seq.window = None
            seq.tokens.append(token)
            self._touched_tokens = max(self._touched_tokens, self._cache.length[seq.slot])
        return chosen

    def close(self, seq: Sequence) -> None:
        """Give the sequence's slot back; may be called twice, and after any error."""
        if seq.closed:
            return
        seq.closed = True
        seq.logits = seq.window = None
        self._cache.reset(seq.slot)
        self._free_slots.append(seq.slot)

    # --- inside -----------------------------------------------------------------------------------------------

    def _make_tiers(self, model: LoadedModel, load: Load) -> 'List[Tier]':
        """Quantise the weights to the tiers asked for that fit, on CUDA; elsewhere there is one precision."""
        if self.device.type != 'cuda':
            return []
        from timebill_ros.engine.cuda.setup import choose_tiers, make_tiers
        choice = choose_tiers(load.tiers, model.config, self.device, model.dtype)
        self.notes += choice.notes
        return make_tiers(choice.names, model.weights)

    def _make_runner(self, model: LoadedModel, load: Load, tiers: 'List[Tier]',
                     rope: RopeTable) -> 'Optional[StepRunner]':
        if not tiers:
            return None
        from timebill_ros.engine.cuda.setup import make_runner
        return make_runner(
            model.config, model.weights, tiers, rope, self._cache, cache_dir(load.cache_dir) / 'kernels')

    def _capacity(self, max_context: int) -> int:
        """Return the tokens to reserve cache for: the context, or what the memory holds of it."""
        limit = self._memory_limit
        if self.device.type == 'cuda' and not limit:
            limit = int((1.0 - _MEMORY_KEPT_FREE) * available_bytes(self.device))
        if not limit:
            return max_context              # a CPU's cache takes memory only as it is written
        capacity = min(max_context, limit // self._token_bytes)
        if capacity < 1:
            raise OutOfMemory(f'the KV cache needs {gibibytes(self._token_bytes)} for each token, '
                              f'there are {gibibytes(limit)}')
        return capacity

    def _check_open(self, seq: Sequence) -> None:
        if seq.closed:
            raise EngineError('the sequence is closed')
