# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The split into training, validation and held-out prompts: by hash, near-duplicates kept together.

The rule. Two prompts are near-duplicates when the Jaccard similarity of their sets of 5-word
shingles (lower-case words and numbers) is at least 0.5; near-duplicates of near-duplicates form
one group. A group's place in the split is the SHA-256 of its smallest prompt id, so that it
depends on nothing but the prompts themselves. A prompt file that grows keeps its split, unless a
new prompt joins groups.
"""

from collections import defaultdict
from dataclasses import dataclass
import hashlib
import re
from typing import Sequence

import numpy as np
from numpy.typing import NDArray

from timebill_ros.length_predictor.data import Prompt

SHINGLE_WORDS = 5
MIN_JACCARD = 0.5
HELD_OUT_SHARE = 0.20
VALIDATION_SHARE = 0.10

# 32 bands of 3 rows find a pair of Jaccard similarity 0.5 with probability 0.986, one of 0.6 with
# 0.9996; every pair found is checked on the sets themselves.
_BANDS, _ROWS = 32, 3
_PRIME = (1 << 31) - 1


def near_duplicate_groups(texts: Sequence[str]) -> list[int]:
    """Return a group number per text; texts of one group are near-duplicates."""
    sets = [shingles(text) for text in texts]
    signatures = (
        np.stack([_minhash(found) for found in sets])
        if sets
        else np.zeros((0, _BANDS * _ROWS))
    )
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for band in range(_BANDS):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for i, row in enumerate(signatures[:, band * _ROWS : (band + 1) * _ROWS]):
            buckets[row.tobytes()].append(i)
        for members in buckets.values():
            kept: list[int] = []  # members that are no near-duplicate of an earlier one
            for i in members:
                match = next(
                    (
                        j
                        for j in kept
                        if root(i) == root(j) or _jaccard(sets[i], sets[j]) >= MIN_JACCARD
                    ),
                    None,
                )
                if match is None:
                    kept.append(i)
                else:
                    a, b = root(match), root(i)
                    parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(texts))]


@dataclass(frozen=True)
class Split:
    """Where each prompt id belongs, and the smallest id of its group of near-duplicates."""

    place: dict[str, str]  # "train", "validation" or "held-out"
    group: dict[str, str]

    def fold(self, prompt_id: str, n_folds: int) -> int:
        """Return a fold by hash, for cross-fitting; near-duplicates share theirs."""
        return int(_hash_share('fold:' + self.group[prompt_id]) * n_folds)


def split_prompts(prompts: Sequence[Prompt]) -> Split:
    """Split prompts by the module's rule."""
    groups = near_duplicate_groups([p.text for p in prompts])
    first_id: dict[int, str] = {}
    for prompt, number in zip(prompts, groups):
        first_id[number] = min(first_id.get(number, prompt.prompt_id), prompt.prompt_id)
    group = {prompt.prompt_id: first_id[number] for prompt, number in zip(prompts, groups)}
    return Split({prompt_id: _place(first) for prompt_id, first in group.items()}, group)


def _place(group_id: str) -> str:
    share = _hash_share(group_id)
    if share < HELD_OUT_SHARE:
        return 'held-out'
    return 'validation' if share < HELD_OUT_SHARE + VALIDATION_SHARE else 'train'


def _hash_share(text: str) -> float:
    """Return a number in 0 .. 1, evenly spread, that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big') / 2.0**64


def shingles(text: str) -> set[int]:
    """Return the hashes of a text's runs of SHINGLE_WORDS words."""
    words = re.findall(r'[a-z0-9]+', text.lower())
    count = max(1, len(words) - SHINGLE_WORDS + 1)
    return {
        int.from_bytes(
            hashlib.blake2b(
                ' '.join(words[i : i + SHINGLE_WORDS]).encode(), digest_size=4
            ).digest(),
            'little',
        )
        % _PRIME
        for i in range(count)
    }


def _minhash(found: set[int]) -> NDArray[np.int64]:
    values = np.fromiter(found, dtype=np.int64)
    return ((values[:, None] * _MULTIPLY + _ADD) % _PRIME).min(axis=0)


def _jaccard(a: set[int], b: set[int]) -> float:
    return len(a & b) / len(a | b)


_rng = np.random.default_rng(20251221)
_MULTIPLY = _rng.integers(1, _PRIME, _BANDS * _ROWS, dtype=np.int64)
_ADD = _rng.integers(0, _PRIME, _BANDS * _ROWS, dtype=np.int64)
