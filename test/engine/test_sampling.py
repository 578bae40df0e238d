# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Tokens are chosen as transformers' processors and warpers choose them."""

from typing import Any

from hypothesis import given, settings, strategies
import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper,
    TopKLogitsWarper, TopPLogitsWarper)

from timebill_ros.engine.errors import NotFinite
from timebill_ros.engine.sampling import Sampler
from timebill_ros.query import Sampling

CPU = torch.device('cpu')
VOCABULARY = 400


def logits(seed: int) -> Tensor:
    return 4.0 * torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(seed))


def theirs(sampling: Sampling, ids: list[int], scores: Tensor) -> Tensor:
    """Return the scores as transformers' ``generate`` makes them."""
    steps: list[Any] = []
    if sampling.repetition_penalty != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature > 0.0:
        steps.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k > 0:
            steps.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1.0:
            steps.append(TopPLogitsWarper(sampling.top_p))
    return LogitsProcessorList(steps)(torch.tensor([ids]), scores[None].clone())[0]


@settings(max_examples=80, deadline=None)
@given(strategies.data())
def test_scores_are_those_of_the_processors(data: Any) -> None:
    sampling = Sampling(
        temperature=data.draw(strategies.sampled_from([0.0, 0.3, 1.0, 2.5])),
        top_p=data.draw(strategies.sampled_from([1.0, 0.95, 0.5, 0.01])),
        top_k=data.draw(strategies.sampled_from([0, 1, 20, 5000])),
        repetition_penalty=data.draw(strategies.sampled_from([1.0, 1.2, 0.8])), seed=1)
    ids = data.draw(strategies.lists(strategies.integers(0, VOCABULARY - 1), min_size=1))
    sampler = Sampler(sampling, ids, CPU)
    for step in range(3):
        scores = logits(data.draw(strategies.integers(0, 10 ** 6)))
        if sampling.top_p == 1.0 and data.draw(strategies.booleans()):
            scores = scores.round()         # many equal ones (top-p cuts them where rounding says)
        assert torch.equal(sampler.process(scores), theirs(sampling, ids, scores)), step
        ids = [*ids, sampler.choose(scores)]


def test_the_penalty_counts_prompt_and_response_once_each() -> None:
    sampler = Sampler(Sampling(repetition_penalty=2.0), [3, 3, 3], CPU)
    scores = torch.zeros(5)
    scores[[1, 3]] = torch.tensor([1.5, 2.9])
    assert sampler.choose(scores) == 1              # 2.9 / 2 is below 1.5
    assert sampler.choose(scores) == 3              # now 1.5 is halved as well
    assert sampler.process(-torch.ones(5)).tolist() == [-1.0, -2.0, -1.0, -2.0, -1.0]


def test_the_logits_are_left_alone() -> None:
    scores = logits(1)
    before = scores.clone()
    Sampler(Sampling(0.7, 0.9, 10, 1.2, 5), [1, 2], CPU).choose(scores)
    assert torch.equal(scores, before)


def test_a_seed_gives_the_same_draws_and_another_seed_others() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.5, seed=seed), [1], CPU)
        return [sampler.choose(logits(step)) for step in range(40)]

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)
    assert draw(None) != draw(None)


@pytest.mark.parametrize('sampling', [Sampling(), Sampling(0.8, 0.9, 5, 1.2, 1)])
@pytest.mark.parametrize('broken', [torch.nan, torch.inf])
def test_what_is_no_number_is_not_chosen_from(sampling: Sampling, broken: float) -> None:
    scores = logits(4)
    scores[7] = broken
    for each in (scores, torch.full((VOCABULARY,), torch.nan)):
        with pytest.raises(NotFinite, match='not a number'):
            Sampler(sampling, [1], CPU).choose(each)


@pytest.mark.parametrize('temperature', [5e-324, 1e-40, 1e-6, 1e-5])
def test_the_least_temperatures_choose_the_likeliest(temperature: float) -> None:
    sampling = Sampling(temperature, 0.9, 5, 1.0, 1)
    assert sampling.greedy == (temperature < 1e-5)
    assert Sampler(sampling, [1], CPU).choose(logits(5)) == int(logits(5).argmax())


@pytest.mark.parametrize('sampling', [
    Sampling(temperature=0.8, top_k=6, top_p=0.9, seed=11), Sampling(temperature=1.4, seed=12)])
def test_draws_follow_the_distribution(sampling: Sampling) -> None:
    scores = logits(3)[:12]
    expected = torch.softmax(theirs(sampling, [0], scores), -1)
    sampler = Sampler(sampling, [0], CPU)
    n_draws = 4000
    counts = torch.zeros(12)
    for _ in range(n_draws):
        counts[sampler.choose(scores)] += 1
    assert not counts[expected == 0].any()
    # chi-square of up to 11 degrees of freedom: 37.4 is exceeded once in 10,000 times
    drawn = expected > 0
    deviation = (counts - n_draws * expected)[drawn] ** 2 / (n_draws * expected[drawn])
    assert deviation.sum() < 37.4


@pytest.mark.parametrize('penalty', [1.0, 1.3])
def test_a_choice_put_on_its_way_is_the_same(penalty: float) -> None:
    prompt = [3, 7, 7, 20, 3]
    sampling = Sampling(repetition_penalty=penalty)
    plain, begun = (Sampler(sampling, prompt, CPU) for _ in range(2))
    token = begun.begin(logits(1), torch.tensor(prompt))
    chosen = [begun.choose(logits(seed)) for seed in range(1, 9)]
    assert token is not None and int(token) == chosen[0]
    assert chosen == [plain.choose(logits(seed)) for seed in range(1, 9)]


def test_a_draw_is_not_put_on_its_way_and_is_the_same() -> None:
    sampling = Sampling(0.8, 0.9, 0, 1.2, 5)
    plain, begun = (Sampler(sampling, [1, 1, 2], CPU) for _ in range(2))
    assert begun.begin(logits(4), torch.tensor([1, 1, 2])) is None
    assert begun.choose(logits(4)) == plain.choose(logits(4))


def test_a_choice_on_its_way_that_is_no_number_is_refused() -> None:
    sampler = Sampler(Sampling(), [1], CPU)
    broken = logits(0)
    broken[5] = torch.nan
    sampler.begin(broken, torch.tensor([1]))
    with pytest.raises(NotFinite):
        sampler.choose(broken)
