# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
What the experiments ask: prompts with right answers, and how an answer is scored.

Prompts of LongBench come from a file (``longbench.read``); the sets of ``generated`` are made here,
from a seed, for what LongBench leaves out or has only beyond the context of small models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from timebill_ros.experiments.metrics import best_score


@dataclass(frozen=True)
class Item:
    """One question. ``group`` is the class of tasks that it is reported under."""

    item_id: str
    group: str
    metric: str                         # a name of metrics.METRICS
    prompt: str
    golds: tuple[str, ...]
    max_new_tokens: int                 # the client's cap on the response
    classes: tuple[str, ...] = ()
    first_line: bool = False            # only the first line of an answer counts

    def score(self, response: str) -> float:
        """Return how good a response is, 0 to 1."""
        answer = response.lstrip('\n').split('\n')[0] if self.first_line else response
        return best_score(self.metric, answer, self.golds, self.classes)


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return ``count`` items, taken in turn from every group, in the order of the items."""
    by_group: dict[str, list[Item]] = {}
    for item in items:
        by_group.setdefault(item.group, []).append(item)
    longest = max((len(group) for group in by_group.values()), default=0)
    turns = [group[turn] for turn in range(longest) for group in by_group.values()
             if turn < len(group)]
    return turns[:count]
