# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The engine: a loaded model that prefills, evicts and decodes sequences, for one thread."""

from array import array
from dataclasses import replace
from typing import Callable, Optional

import torch
from torch import Tensor

from timebill_ros.budget.kept import kept_tokens, SNAPKV_WINDOW
from timebill_ros.engine.cache_memory import CacheMemory
from timebill_ros.engine.decoder import Decoder
from timebill_ros.engine.defaults import default_sampling, sampling_fields
from timebill_ros.engine.errors import EngineError, ModelError, PromptTooLong
from timebill_ros.engine.kv_cache import allocate, kv_bytes_per_token
from timebill_ros.engine.loading import (
    device_name, engine_version, load_model, LoadedModel, model_key, prefill_chunk, Report)
from timebill_ros.engine.memory import out_of_memory_as_ours, usable_bytes
from timebill_ros.engine.prefill import beside_steps, device_suffix, make_prefill, prefill_room
from timebill_ros.engine.rope import rope_table
from timebill_ros.engine.sampling import Sampler
from timebill_ros.engine.sequence import Sequence
from timebill_ros.engine.snapkv import prompt_scores, QueryWindow
from timebill_ros.engine.steps import make_steps, make_tiers
from timebill_ros.engine.text import ResponseText
from timebill_ros.executor.messages import Load, ModelInfo
from timebill_ros.length_predictor.predictor import Predictor
from timebill_ros.length_predictor.serving import predictor_for
from timebill_ros.query import Sampling, Turn


class Engine:
    """
    A model in memory and the calls that move sequences through it.

    ``open_sequence``, then ``prefill_chunk`` until it says done, ``next_token``, ``evict`` if
    wanted, then ``decode_step`` until the caller has enough, and ``close``. After an error the
    sequence has to be closed and the engine goes on. ``tokenize`` and ``response_text`` may be
    called from another thread.
    """

    def __init__(
            self, model: LoadedModel, load: Load, predictor: Optional[Predictor] = None) -> None:
        """Prepare the cache and the tables; ``Engine.load`` is the usual way."""
        self.predictor = predictor      # of the response's length; None = there is none
        config, device, dtype = model.config, model.device, model.dtype
        self.device = device
        self._end_ids = config.eos_ids
        self._codec = model.codec
        self._scale = float(config.head_dim ** -0.5)
        self._tapped = load.tap_layer > 0
        self.chunk_tokens = prefill_chunk(load.prefill_chunk, device)
        if not 0 <= load.tap_layer <= config.n_layers:
            raise ModelError(f'tap_layer {load.tap_layer} is not one of the {config.n_layers} '
                             'layers')
        with torch.inference_mode(), out_of_memory_as_ours('starting the engine', device):
            tiers, notes = make_tiers(model, load)
            free = usable_bytes(device, load.gpu_memory_fraction)
            room = prefill_room(model, load, free)
            self.prefill_tokens = room.chunk_tokens     # computed at once, if in slices
            self._memory = CacheMemory(device, kv_bytes_per_token(config, dtype),
                                       load.kv_memory_bytes, max(0, free - room.nbytes))
            slots, capacity = self._memory.reserve(model.max_context, load.max_batch)
            self._cache = allocate(config, slots, capacity, dtype, device)
            rope = rope_table(config, model.max_context, device)
            self._decoder = Decoder(config, model.weights, rope, self._cache, load.tap_layer)
            # the prefill second: it keeps the memory that it takes for long prompts
            self._steps = make_steps(model, load, tiers, rope, self._cache, self._decoder)
            self._prefill = beside_steps(
                make_prefill(model, load, room, rope, self._cache, self._decoder),
                self._steps, model, room.chunk_tokens, load.prefill_tier)
            self._windows = [
                QueryWindow(config.n_layers, config.n_heads, config.head_dim, dtype, device)
                for _ in range(slots)]
            if device.type == 'cuda' and capacity > SNAPKV_WINDOW:
                # takes the memory that scores of any prompt are made in
                prompt_scores(self._windows[0], self._cache.k[:, 0], self._scale)
        self._ids = torch.zeros(
            (slots, capacity), dtype=torch.long, pin_memory=device.type == 'cuda')
        self._free_slots = list(range(slots))[::-1]
        self._newest_slots: list[int] = []          # of the newest decode step, by row
        self.notes = [*model.notes, *notes]
        if slots < load.max_batch:
            self.notes.append(f'{slots} of {load.max_batch} sequences at once: there is room for '
                              f'{slots} KV caches of {capacity} tokens (max_context)')
        self.info = ModelInfo(
            name=model.source.name, key=model_key(model.source), family=config.family,
            device=device_name(device) + device_suffix(self._prefill),
            dtype=str(dtype).split('.')[1], tiers=self._steps.tiers,
            n_layers=config.n_layers, n_heads=config.n_heads, n_kv_heads=config.n_kv_heads,
            head_dim=config.head_dim, vocab_size=config.vocab_size,
            max_context=model.max_context, n_max=load.n_max,
            kv_bytes_per_token=self._memory.token_bytes,
            sampling=sampling_fields(default_sampling(model.source.name, model.source.directory)),
            engine_version=engine_version(), max_batch=slots)

    @staticmethod
    def load(load: Load, report: Report = lambda what, fraction: None) -> 'Engine':
        """
        Load a model; ``report`` gets what is being done and a fraction.

        Raises ModelError, OutOfMemory or (the predictor's) CheckpointError with what to mend.
        """
        model = load_model(load, report)
        predictor = predictor_for(
            load.predictor, model.source.directory, model.config.vocab_size, model.config.d_model,
            str(model.device))
        if predictor is not None:
            load = replace(load, tap_layer=predictor.state_layer)
        return Engine(model, load, predictor)

    @property
    def padded_lengths(self) -> list[int]:
        """The lengths to which short prompts are filled up, ascending; [] = they are not."""
        return self._prefill.padded_lengths

    @property
    def attention_stair(self) -> int:
        """Attention of prompts longer than those is done for a multiple of so many tokens."""
        return self._prefill.attention_stair

    @property
    def packed_bytes(self) -> dict[str, int]:
        """Return by tier what its matrices take, where they are packed tighter than it says."""
        return self._steps.packed_bytes

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a response."""
        return self._end_ids

    @property
    def device_memory_bytes(self) -> int:
        """Memory held on an accelerator; 0 on a CPU."""
        return torch.cuda.memory_reserved(self.device) if self.device.type == 'cuda' else 0

    def check_device(self) -> None:
        """
        Raise if the accelerator is out of order: a failed kernel leaves it useless.

        What is under way is waited for, but a step that went ahead is not.
        """
        if self.ahead:
            torch.cuda.current_stream(self.device).query()
        elif self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)

    def tokenize(self, messages: list[Turn], limit: int = 0) -> list[int]:
        """
        Return a conversation's ids up to where the answer starts; raises EngineError.

        One that is far beyond a ``limit`` may come without its end, but with more ids than that.
        """
        return self._codec.encode_chat(messages, limit)

    def response_text(self, stop: list[str]) -> ResponseText:
        """Return the text side of a new response."""
        return ResponseText(self._codec, stop)

    def check_memory(self, n_tokens: int) -> None:
        """
        Raise OutOfMemory if a sequence of ``n_tokens``, prompt and response, does not fit.

        This is for queries that may have to wait: what open sequences hold does not count here, but
        in ``open_sequence``.
        """
        self._memory.check(n_tokens)

    def has_room(self, n_tokens: int) -> bool:
        """Tell whether ``open_sequence`` would find a slot and memory for it right now."""
        return bool(self._free_slots) and self._memory.fits(self._next_slot(), n_tokens)

    def _next_slot(self) -> int:
        """Return the free slot that costs the least: the one with the most memory already taken."""
        return max(self._free_slots, key=self._memory.written_tokens)

    def open_sequence(self, ids: list[int], capacity: int,
                      sampling: Optional[Sampling] = None) -> Sequence:
        """
        Start a sequence that may grow to ``capacity`` tokens, prompt and response.

        ``capacity`` is cut to the context. Raises PromptTooLong, or OutOfMemory before any work.
        """
        limit = self.info.max_context
        if not ids:
            raise EngineError('the prompt has no tokens')
        if len(ids) + 1 > limit:
            raise PromptTooLong(f'the prompt has {len(ids)} tokens; with one token of answer it '
                                f'exceeds the context of {limit} tokens')
        prompt = torch.frombuffer(array('q', ids), dtype=torch.long)
        if int(prompt.min()) < 0 or int(prompt.max()) >= self.info.vocab_size:
            raise EngineError(f'the prompt has a token that the model has no embedding for: it '
                              f'knows {self.info.vocab_size}')
        capacity = max(len(ids) + 1, min(capacity, limit))
        if not self._free_slots:
            self.check_memory(capacity)
            raise EngineError('every slot of the KV cache is in use')
        self.settle()
        sampler = Sampler(sampling or Sampling(), ids, self.device)
        slot = self._next_slot()
        self._memory.hold(slot, capacity)
        self._free_slots.remove(slot)
        self._cache.reset(slot)
        return Sequence(
            slot, list(ids), capacity, sampler, self._windows[slot],
            self._ids[slot, :len(ids)].copy_(prompt), choose_first=self._choose_first)

    @torch.inference_mode()
    def begin_prefill(self, seq: Sequence) -> None:
        """Let a GPU begin with a prompt that ``prefill_chunk`` is called for next, if it can."""
        with out_of_memory_as_ours('prefill', self.device):
            if self._is_alone:
                self._prefill.begin(seq)

    @property
    def _is_alone(self) -> bool:
        """Tell whether one sequence is open, so that nothing comes between its calls."""
        return len(self._free_slots) == self._cache.n_slots - 1

    @torch.inference_mode()
    def prefill_chunk(self, seq: Sequence) -> bool:
        """
        Do the next piece of the prefill; returns whether the prompt is done.

        On a CPU that is a chunk of the prompt, on CUDA a slice of about 16 ms of one.
        """
        _check_open(seq)
        if seq.prefill_done:
            return True
        with out_of_memory_as_ours('prefill', self.device):
            seq.n_prefilled += self._prefill.advance(seq, self._is_alone)
            seq.kept = seq.n_prefilled
            self._memory.wrote(seq.slot, seq.n_prefilled)
        return seq.prefill_done

    @torch.inference_mode()
    def assume_prefilled(self, seq: Sequence, n_tokens: int) -> None:
        """
        Take the first ``n_tokens`` of the prompt as prefilled, with noise in their place.

        For measuring: a step or a chunk takes the same time whatever the cached values are, as
        long as they are ordinary numbers.
        """
        _check_open(seq)
        written = self._memory.written_tokens(seq.slot)     # those are ordinary already
        if n_tokens > written:
            self._cache.write_noise(seq.slot, written, n_tokens)
            self._memory.wrote(seq.slot, n_tokens)
        self._cache.reset(seq.slot)
        self._cache.advance(seq.slot, n_tokens)
        seq.n_prefilled = seq.kept = n_tokens
        if seq.prefill_done and seq.n_prompt > SNAPKV_WINDOW:
            seq.window.queries.normal_()
            if self.device.type == 'cuda':      # where every prefill leaves them
                self._prompt_scores(seq)
                self.check_device()

    @torch.inference_mode()
    def next_token(self, seq: Sequence) -> int:
        """Choose the first token of the response from the prefill's logits; no forward pass."""
        _check_open(seq)
        if seq.logits is None:
            raise EngineError('the first token comes once, after the prefill')
        token = seq.sampler.choose(seq.logits)
        seq.logits = None
        seq.tokens.append(token)
        if not seq.begun:
            self._steps.begin(seq)
        return token

    def _choose_first(self, seq: Sequence) -> None:
        """Have the device choose the first token and prepare for the next, if nothing must wait."""
        assert seq.logits is not None
        token = seq.sampler.begin(seq.logits, seq.ids.to(self.device, non_blocking=True))
        if token is not None:
            self._steps.begin(seq, token)

    def prompt_state(self, seq: Sequence) -> Optional[Tensor]:
        """
        Return the hidden state after ``Load.tap_layer`` layers at the last prompt token.

        float32 [d_model] on the engine's device; None before the end of the prefill and without a
        tap.
        """
        return seq.prompt_state

    def newest_state(self, seq: Sequence) -> Optional[Tensor]:
        """Return the same at the token that the newest decode step took in, if it took ``seq``."""
        self._check_newest()
        tap = self._steps.tap
        if not self._tapped or tap is None or seq.slot not in self._newest_slots:
            return None
        return tap[self._newest_slots.index(seq.slot)].float()

    def newest_logits(self, seq: Sequence) -> Tensor:
        """
        Return the logits [vocab_size] of the newest decode step, float32; it must have taken it.

        On CUDA the repetition penalty is in them, so that a measurement switches it off.
        """
        self._check_newest()
        return self._steps.logits[self._newest_slots.index(seq.slot)]

    def rewind(self, seq: Sequence) -> None:
        """Forget the response in the cache; evictions stay. ``force`` says how it goes on."""
        _check_open(seq)
        self.settle()
        self._cache.length[seq.slot] = seq.kept
        self._cache.position[seq.slot] = seq.n_prompt
        self._steps.moved(seq.slot)

    def force(self, seq: Sequence, token: int) -> None:
        """Have the next step take in ``token``, whatever was chosen; for measuring."""
        _check_open(seq)
        self.settle()
        seq.tokens[:] = [token]
        seq.begun = False

    @torch.inference_mode()
    def evict(self, seq: Sequence, alpha: float) -> int:
        """
        Evict the share ``alpha`` of the prompt by SnapKV; returns the positions kept.

        How many that is says ``budget.kept``. After the prefill, and again at any later time with a
        larger ``alpha``: that leaves what a single eviction would have left. Tokens of the response
        stay.
        """
        _check_open(seq)
        if not seq.prefill_done:
            raise EngineError('eviction comes after the prefill')
        n_kept = kept_tokens(seq.n_prompt, alpha)
        if n_kept >= seq.kept:
            return seq.kept
        self.settle()
        with out_of_memory_as_ours('eviction', self.device):
            scores = self._prompt_scores(seq)
            seq.scores = self._prefill.eviction.keep(self._cache, seq.slot, scores, n_kept)
            self._steps.moved(seq.slot)
            self.check_device()
        seq.kept = n_kept
        return n_kept

    def _prompt_scores(self, seq: Sequence) -> Tensor:
        """Return the scores of the prompt's entries in the cache, made when first asked for."""
        if seq.scores is None:
            keys = self._cache.k[:, seq.slot, :, :seq.n_prompt]
            seq.scores = prompt_scores(seq.window, keys, self._scale)
        return seq.scores

    @torch.inference_mode()
    def decode_step(self, seqs: list[Sequence], tier: str = '',
                    goes_on: Callable[[bool], bool] = lambda over: False) -> list[int]:
        """
        Run the newest token of each sequence in one forward pass and choose the next ones.

        ``tier`` is one of ``info.tiers`` ('' = the first) and may be another one at every step. If
        the same step is likely to be asked for next, a device that works by itself begins with it
        at once, while the caller looks at the tokens (``ahead``): ``goes_on(over)`` says so, asked
        while this one is under way, and when it is ``over`` and nobody ends with it. Any other call
        for these sequences has that step undone first.
        """
        for seq in seqs:
            _check_open(seq)
            if not seq.tokens:
                raise EngineError('decode_step comes after next_token')
            if seq.n_prompt + len(seq.tokens) >= seq.capacity:
                raise EngineError(f'the sequence is at its capacity of {seq.capacity} tokens')
        if not self.is_ahead(seqs, tier):
            self.settle()

        def may_go_on(over: bool) -> bool:
            return all(seq.n_prompt + len(seq.tokens) + 1 < seq.capacity for seq in seqs) and (
                goes_on(over))

        with out_of_memory_as_ours('decode step', self.device):
            chosen = self._steps.step(seqs, tier, may_go_on)
            if not self.ahead and not any(token in self._end_ids for token in chosen) and (
                    may_go_on(True)):
                self._steps.go_ahead(seqs, tier)
        self._newest_slots = [seq.slot for seq in seqs]
        for seq, token in zip(seqs, chosen):
            seq.tokens.append(token)
            self._memory.wrote(seq.slot, self._cache.length[seq.slot])
        return chosen

    @property
    def ahead(self) -> bool:
        """Tell whether a decode step is under way that nobody has asked for yet."""
        return self._steps.ahead

    def is_ahead(self, seqs: list[Sequence], tier: str) -> bool:
        """Tell whether that is this step."""
        return self._steps.is_ahead(seqs, tier)

    def settle(self) -> None:
        """
        Wait for what went ahead of the call that takes its result: other work comes first.

        A decode step is undone, since the next one will not be the same.
        """
        self._prefill.settle()
        self._steps.settle()

    def _check_newest(self) -> None:
        """Raise if a step that went ahead writes where the newest one has left its results."""
        if self.ahead:
            raise EngineError('the newest step has been overtaken by one that went ahead')

    def close(self, seq: Sequence) -> None:
        """Give the sequence's slot back; may be called twice, and after any error."""
        if seq.closed:
            return
        seq.closed = True
        seq.logits = seq.scores = seq.prompt_state = seq.under_way = None
        self._newest_slots = [-1 if slot == seq.slot else slot for slot in self._newest_slots]
        self._memory.release(seq.slot)
        self._cache.reset(seq.slot)
        self._free_slots.append(seq.slot)


def _check_open(seq: Sequence) -> None:
    if seq.closed:
        raise EngineError('the sequence is closed')
