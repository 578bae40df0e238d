# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The split leaks neither ids nor near-duplicates."""

import numpy as np

from timebill_ros.length_predictor.data import Prompt
from timebill_ros.length_predictor.split import near_duplicate_groups, split_prompts

WORDS = [f'w{i}' for i in range(400)]


def _prompts(count=400):
    """Half of the prompts are another one's text with one word changed."""
    rng = np.random.default_rng(1)
    prompts = []
    for i in range(count // 2):
        words = rng.choice(WORDS, 60).tolist()
        prompts.append(Prompt(f'a/{i}', 'a', ' '.join(words)))
        words[int(rng.integers(60))] = 'changed'
        prompts.append(Prompt(f'b/{i}', 'b', ' '.join(words).upper() + '!'))
    return prompts


def test_near_duplicates_share_their_place_and_their_fold():
    prompts = _prompts()
    split = split_prompts(prompts)
    for i in range(200):
        assert split.place[f'a/{i}'] == split.place[f'b/{i}']
        assert split.fold(f'a/{i}', 5) == split.fold(f'b/{i}', 5)
    assert len(set(split.group.values())) == 200


def test_shares_are_as_stated_and_do_not_depend_on_the_order():
    prompts = _prompts(3000)
    split = split_prompts(prompts)
    places = list(split.place.values())
    assert abs(places.count('held-out') / len(places) - 0.20) < 0.03
    assert abs(places.count('validation') / len(places) - 0.10) < 0.03
    assert split_prompts(prompts[::-1]) == split


def test_different_texts_stay_apart_and_short_ones_count_whole():
    groups = near_duplicate_groups(['2 + 2', '2 + 3', '2  +  2', 'name a river in Peru please'])
    assert groups[0] == groups[2]
    assert len(set(groups)) == 3
