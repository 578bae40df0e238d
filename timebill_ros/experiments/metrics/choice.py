# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores of answers that are a class, a number or a line of code."""

from collections.abc import Sequence
import re

from timebill_ros.experiments.metrics.overlap import subsequence_lengths

_NUMBER = re.compile(r'\d+')
_PARAGRAPH = re.compile(r'Paragraph (\d+)')
_NO_CODE = ('`', '#', '//')     # a line with one of these is taken for a comment or a fence


def classification_score(prediction: str, gold: str, classes: Sequence[str]) -> float:
    """Return 1 / (class names found in the prediction) if the right one is among them, else 0."""
    named = [name for name in classes if name in prediction]
    # Names that are part of the right one do not count against it. Removing from the list that is
    # walked over skips the next name: LongBench's evaluation does, and so do its published scores.
    for name in named:
        if name in gold and name != gold:
            named.remove(name)
    return 1.0 / len(named) if gold in named else 0.0


def count_score(prediction: str, gold: str) -> float:
    """Return the share of the numbers in the prediction that are the right one."""
    numbers = _NUMBER.findall(prediction)
    return numbers.count(gold) / len(numbers) if numbers else 0.0


def retrieval_score(prediction: str, gold: str) -> float:
    """Return the share of the numbers in the prediction that are N of the gold "Paragraph N"."""
    return count_score(prediction, _PARAGRAPH.findall(gold)[0])


def code_similarity(prediction: str, gold: str) -> float:
    """
    Return how alike the first line of code and the right one are, in whole percent.

    1 - (characters to delete and insert) / (characters of both): ``fuzz.ratio`` of
    fuzzywuzzy and thefuzz.
    """
    lines = prediction.lstrip('\n').split('\n')
    line = next((each for each in lines if not any(mark in each for mark in _NO_CODE)), '')
    if not line or not gold:
        return 0.0
    total = len(line) + len(gold)
    changes = total - 2 * subsequence_lengths(line, gold)[-1][-1]
    return round(100.0 * (1.0 - changes / total)) / 100.0
