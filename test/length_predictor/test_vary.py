# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Variations of prompts: the same ones again, none of a held-out prompt or like one."""

from dataclasses import replace

import numpy as np
import pytest

from timebill_ros.length_predictor.buckets import Buckets
from timebill_ros.length_predictor.data import Prompt, read_prompts, write_prompts
from timebill_ros.length_predictor.fit_head import HeadConfig
from timebill_ros.length_predictor.split import near_duplicate_groups, split_prompts
from timebill_ros.length_predictor.train import HeadTraining, Rows, soft_labels, train_head
from timebill_ros.length_predictor.vary import origin, vary

WORDS = ('apples', 'trains', 'clouds', 'robots', 'kitchens', 'letters', 'windows', 'bottles')


def _prompts(count: int = 120) -> list[Prompt]:
    chance = np.random.default_rng(3)
    made = []
    for number in range(count):
        some = [WORDS[i] for i in chance.integers(len(WORDS), size=6)]
        text = (f'{some[0].title()} and {some[1]} are {number + 10} in number. There were '
                f'{number * 7 + 3} {some[2]} beside {some[3]} yesterday. How many {some[4]} did '
                f'the {some[5]} carry away?\nOptions:\n(A) {number}\n(B) {some[0]}\n(C) none')
        made.append(Prompt(f'gsm8k/{number}', 'gsm8k', text))
    return made


def test_variations_are_seeded_new_and_unlike_what_is_held_out(tmp_path):
    prompts = _prompts()
    split = split_prompts(prompts)
    made = vary(prompts, split, 'a')
    assert made == vary(prompts, split, 'a') != vary(prompts, split, 'b')
    assert len(made) > 60
    texts = {p.text for p in prompts}
    assert not texts & {p.text for p in made} and len({p.text for p in made}) == len(made)
    assert all(split.place[origin(p.prompt_id)] != 'held-out' for p in made)
    held_out = [p.text for p in prompts if split.place[p.prompt_id] == 'held-out']
    for each in made:       # no pair of a held-out prompt and it is a near-duplicate
        groups = near_duplicate_groups([each.text, *held_out])
        assert groups[0] not in groups[1:]
    write_prompts(tmp_path / 'made.jsonl.gz', made)
    assert read_prompts(tmp_path / 'made.jsonl.gz') == made


def test_what_is_no_variation_is_its_own_origin():
    assert origin('fresh-a/p3/some-7') == 'p3/some-7' and origin('p3/some-7') == 'p3/some-7'


def test_a_head_learns_from_variations_but_never_from_held_out_prompts():
    prompts = _prompts(300)
    split = split_prompts(prompts)
    ids = [p.prompt_id for p in prompts]
    chance = np.random.default_rng(5)
    states = chance.normal(size=(600, 4)).astype(np.float32)
    lengths = np.clip(30 + 12 * states[:, :1], 1, 64).astype(np.int64)
    rows = Rows(states[:300], lengths[:300], ids)
    config = HeadTraining(8, 2, head=HeadConfig(hidden=8, epochs=4, learning_rate=1e-2), spread=1.0)
    trained_on = [i for i in ids if split.place[i] != 'held-out']
    more = Rows(states[300:300 + len(trained_on)], lengths[300:300 + len(trained_on)],
                [f'fresh-a/{i}' for i in trained_on])
    without, with_more = (train_head(rows, split, 64, config, more=m) for m in ([], [more]))
    assert not np.allclose(without.head.w1, with_more.head.w1)
    assert with_more.ratios['n'] == without.ratios['n'] == len(trained_on)
    held_out = next(i for i in ids if split.place[i] == 'held-out')
    with pytest.raises(ValueError, match='variations of held-out prompts'):
        train_head(rows, split, 64, config, more=[replace(
            more, prompt_ids=[f'fresh-a/{held_out}'] * len(trained_on))])


def test_a_label_is_spread_over_its_neighbours_but_not_into_the_cap():
    buckets = Buckets(8, 64)
    labels = soft_labels(buckets, np.array([[20], [63], [64]]), spread=1.0)
    assert labels.sum(1) == pytest.approx(1.0)
    assert labels[0].argmax() == 2 and labels[0, 1] == pytest.approx(labels[0, 3], rel=0.1)
    assert labels[1, -1] == 0.0 and labels[2].tolist() == [0.0] * 8 + [1.0]
