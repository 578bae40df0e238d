# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Collected answers are those of transformers' generate, whatever the batch."""

import copy

import pytest
import torch

from timebill_ros.length_predictor.generate import generate
from timebill_ros.length_predictor.states import read_states
from timebill_ros.query import Sampling

CAP = 60


def _prompts(count):
    generator = torch.Generator().manual_seed(11)
    sizes = torch.randint(1, 40, (count,), generator=generator).tolist()
    return [torch.randint(3, 96, (size,), generator=generator).tolist() for size in sizes]


@pytest.mark.parametrize('penalty, rows', [(1.0, 5), (1.2, 14)])
def test_a_batch_answers_as_transformers_answers_each_prompt_alone(target, penalty, rows):
    """Padding, the mask, rows taken over by new prompts and the penalty change no token."""
    prompts = _prompts(14)
    answers = generate(
        target, prompts, Sampling(repetition_penalty=penalty), CAP, max_rows=rows)
    plain = copy.deepcopy(target.model)
    plain.set_attn_implementation('eager')
    for prompt, answer in zip(prompts, answers):
        alone = plain.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=CAP,
            do_sample=False,
            repetition_penalty=penalty,
        )[0, len(prompt) :].tolist()
        assert answer == alone


def test_rows_end_at_different_steps(target):
    """The test above sees rows leave early and rows reach the cap."""
    lengths = {
        len(a) for a in generate(target, _prompts(24), Sampling(repetition_penalty=1.2), CAP)
    }
    assert len(lengths) > 3 and max(lengths) == CAP


def test_sampling_is_seeded(target):
    """The same seed gives the same answers, another seed others."""
    first, again, other = (
        generate(
            target, _prompts(6), Sampling(temperature=1.5, top_k=40, top_p=0.9, seed=seed), 20
        )
        for seed in (1, 1, 2)
    )
    assert first == again != other


def test_states_are_those_of_the_sequence_alone(target):
    """Right padding changes no state; the last layer's state is the one after the final norm."""
    prompts = _prompts(5)
    states, means = read_states(
        target, prompts, [[len(p) - 1] for p in prompts], [1, 3], mean_layer=0
    )
    for prompt, state, mean in zip(prompts, states, means):
        with torch.inference_mode():
            out = target.model.model(torch.tensor([prompt]), output_hidden_states=True)
        torch.testing.assert_close(
            torch.from_numpy(state[0, 0]).float(),
            out.hidden_states[1][0, -1],
            atol=2e-2,
            rtol=2e-3,
        )
        torch.testing.assert_close(
            torch.from_numpy(state[0, 1]).float(),
            out.last_hidden_state[0, -1],
            atol=2e-2,
            rtol=2e-3,
        )
        torch.testing.assert_close(
            torch.from_numpy(mean).float(), out.hidden_states[1][0].mean(0), atol=2e-2, rtol=2e-3
        )
