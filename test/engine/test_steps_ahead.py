# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Steps that go ahead choose the same tokens as steps on demand: the CUDA kernels, emulated."""

from functools import partial
import random
import shutil

from engine.cuda_emulation import EmulatedKernels
from engine.test_cuda_step import CONFIG, CPU, LIMITS, random_weights, TUNING
import pytest
import torch

from timebill_ros.engine.cuda.decode_step import DecodeStep, kernels_needed
from timebill_ros.engine.cuda.runner import StepRunner
from timebill_ros.engine.cuda.tiers import build_tier, int4_group
from timebill_ros.engine.cuda.variants import emulator_source
from timebill_ros.engine.decoder import Decoder
from timebill_ros.engine.kv_cache import allocate
from timebill_ros.engine.rope import rope_table
from timebill_ros.engine.sampling import Sampler
from timebill_ros.engine.sequence import Sequence
from timebill_ros.engine.snapkv import QueryWindow
from timebill_ros.engine.steps import GraphSteps
from timebill_ros.query import Sampling

TIERS = ['bf16', 'int4']
SLOTS = 3
SAMPLINGS = (
    Sampling(repetition_penalty=1.5), Sampling(0.9, 0.95, 40, 1.3, seed=5), Sampling(seed=1))

pytestmark = pytest.mark.skipif(
    shutil.which('g++') is None, reason='the emulator needs a C++ compiler')


class Emulated:
    """Steps that are over when they have begun (``runner.Launches``)."""

    def __init__(self, step, tiers):
        self._step, self._tiers = step, {tier.name: tier for tier in tiers}
        self.tiers, self.launched = list(self._tiers), 0

    def launch(self, tier, width, rows):
        self.launched += 1
        self._step.state.slot_of_row.copy_(torch.tensor(rows, dtype=torch.int32))
        self._step.launch(self._tiers[tier], 1 if width == 1 else 4)

    def sleep(self):
        pass

    def wait(self):
        pass


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
    weights = random_weights()
    tiers = [build_tier(name, weights, int4_group(CONFIG)) for name in TIERS]
    kernels = EmulatedKernels(
        partial(emulator_source, kernels_needed(CONFIG, TIERS, TUNING, LIMITS, (1, 4))),
        tmp_path_factory.mktemp('ahead'))
    return weights, tiers, kernels


class Decoding:
    """A cache, the steps over it, and the sequences in it."""

    def __init__(self, parts):
        weights, tiers, kernels = parts
        rope = rope_table(CONFIG, 256, CPU)
        self.cache = allocate(CONFIG, SLOTS, 128, torch.bfloat16, CPU)
        self._decoder = Decoder(CONFIG, weights, rope, self.cache)
        step = DecodeStep(CONFIG, weights.embed, rope, self.cache, kernels, TUNING, LIMITS)
        self.launches = Emulated(step, tiers)
        self.steps = GraphSteps(StepRunner(step, self.launches, self.cache))

    def open(self, slot, prompt, sampling):
        self.cache.reset(slot)
        ids = torch.tensor(prompt)
        self._decoder.prefill_chunk(slot, ids, None, True)
        window = QueryWindow(CONFIG.n_layers, CONFIG.n_heads, CONFIG.head_dim, torch.bfloat16, CPU)
        return Sequence(slot, prompt, 128, Sampler(sampling, prompt, CPU), window, ids,
                        tokens=[prompt[0]])

    def evict(self, seq, rng):
        self.steps.settle()
        length = self.cache.length[seq.slot]
        kept = sorted(rng.sample(range(length), length - 3))
        self.cache.keep(seq.slot, torch.tensor(kept).expand(
            CONFIG.n_layers, CONFIG.n_kv_heads, -1))
        self.steps.moved(seq.slot)

    def step(self, seqs, tier, ahead):
        chosen = self.steps.step(seqs, tier, lambda over: ahead)
        if ahead and not self.steps.ahead:
            self.steps.go_ahead(seqs, tier)
        for seq, token in zip(seqs, chosen):
            seq.tokens.append(token)
            assert self.cache.position[seq.slot] == seq.n_prompt + len(seq.tokens) - 1


def answers(parts, number, share):
    """Return all tokens, and the steps launched; the ``share`` of steps goes ahead."""
    decoding, rng, aheads = Decoding(parts), random.Random(number), random.Random(share)
    tier, open_seqs, found, stepped = TIERS[0], [], [], 0
    for _ in range(16):
        event = rng.random()
        if event < 0.12 and open_seqs:
            open_seqs.pop(rng.randrange(len(open_seqs))).closed = True
        elif event < 0.2 and open_seqs:
            decoding.evict(rng.choice(open_seqs), rng)
        elif event < 0.3:
            tier = rng.choice(TIERS)
        while not open_seqs or (len(open_seqs) < SLOTS and rng.random() < 0.1):
            slot = min(set(range(SLOTS)) - {seq.slot for seq in open_seqs})
            prompt = [rng.randrange(CONFIG.vocab_size) for _ in range(rng.randint(4, 20))]
            open_seqs.append(decoding.open(slot, prompt, rng.choice(SAMPLINGS)))
            found.append(open_seqs[-1].tokens)
        decoding.step(open_seqs, tier, aheads.random() < share)
        stepped += 1
    return found, decoding.launches.launched - stepped


@pytest.mark.parametrize('number', range(2))
def test_who_joins_leaves_or_is_evicted_from_gets_the_same_tokens(parts, number):
    on_demand, in_vain = answers(parts, number, 0.0)
    assert in_vain == 0
    ahead, in_vain = answers(parts, number, 0.8)
    assert ahead == on_demand and in_vain > 1


def test_a_step_in_vain_leaves_no_trace_in_what_was_seen(parts):
    decoding = Decoding(parts)
    seq = decoding.open(0, [1, 2, 3], Sampling(repetition_penalty=1.5))
    for _ in range(3):
        decoding.step([seq], 'bf16', ahead=True)
    decoding.steps.settle()
    state = decoding.steps._runner._step.state
    # the newest token is one that the next step takes in, as the one in vain has
    assert set(state.seen[0].nonzero().flatten().tolist()) == {*seq.prompt, *seq.tokens}
    assert int(state.lengths[0]) == decoding.cache.length[0] == 3 + 3
    assert int(state.tokens[0]) == seq.tokens[-1]
