# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Scores by overlap: F1 of words (SQuAD), ROUGE-L of summaries.

LongBench computes ROUGE-L with the package ``rouge`` 1.0.1, which is no longer kept and counts
distinct words where the definition (Lin 2004) counts all of them. What counts here is to be
comparable, so that is what this does too; a test holds values that the package gave.
"""

from collections import Counter
from collections.abc import Sequence
import re
import string

_ROUGE_EPSILON = 1e-8       # keeps 0 / 0 away in the package's F
_ARTICLES = re.compile(r'\b(a|an|the)\b')
_NO_PUNCTUATION = str.maketrans('', '', string.punctuation)


def qa_f1(prediction: str, gold: str) -> float:
    """Return the F1 of the words that both texts share, each as often as both hold it."""
    found, wanted = _normal_words(prediction), _normal_words(gold)
    shared = sum((Counter(found) & Counter(wanted)).values())
    if shared == 0:
        return 0.0
    precision, recall = shared / len(found), shared / len(wanted)
    return 2.0 * precision * recall / (precision + recall)


def _normal_words(text: str) -> list[str]:
    """Return the words in lower case, without punctuation and articles."""
    return _ARTICLES.sub(' ', text.lower().translate(_NO_PUNCTUATION)).split()


def rouge_l(prediction: str, gold: str) -> float:
    """
    Return the F1 of ROUGE-L for summaries: the union of common subsequences of all sentences.

    For every sentence of ``gold`` the longest common subsequences with all sentences of
    ``prediction`` are united, as sets of words; 0 where a text has no words.
    """
    found, wanted = _sentences(prediction), _sentences(gold)
    if not found or not wanted:
        return 0.0
    union: set[str] = set()
    for sentence in wanted:
        for candidate in found:
            union |= set(common_subsequence(sentence, candidate))
    recall = len(union) / len({word for sentence in wanted for word in sentence})
    precision = len(union) / len({word for sentence in found for word in sentence})
    return 2.0 * precision * recall / (precision + recall + _ROUGE_EPSILON)


def _sentences(text: str) -> list[list[str]]:
    return [part.split() or [''] for part in text.split('.') if part]


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return a longest common subsequence; of equally long ones that of the package ``rouge``."""
    lengths = subsequence_lengths(first, second)
    found: list[str] = []
    i, j = len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            found.append(first[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def subsequence_lengths(first: Sequence[str], second: Sequence[str]) -> list[list[int]]:
    """Return [i][j]: how long the longest common subsequence of the first i and j items is."""
    lengths = [[0] * (len(second) + 1)]
    for one in first:
        above = lengths[-1]
        row = [0]
        for j, other in enumerate(second):
            row.append(above[j] + 1 if one == other else max(above[j + 1], row[j]))
        lengths.append(row)
    return lengths
