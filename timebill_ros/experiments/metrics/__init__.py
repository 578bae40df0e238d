# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The metrics of LongBench (arXiv 2308.14508, Table 1), as its own evaluation computes them.

Every metric takes a prediction and one right answer and returns 0 to 1; ``best_score`` takes the
best over all right answers. English texts only: the data used here holds no others.
"""

from collections.abc import Callable, Sequence

from timebill_ros.experiments.metrics.choice import (
    classification_score, code_similarity, count_score, retrieval_score)
from timebill_ros.experiments.metrics.overlap import qa_f1, rouge_l

Metric = Callable[[str, str, Sequence[str]], float]

METRICS: dict[str, Metric] = {
    'f1': lambda prediction, gold, classes: qa_f1(prediction, gold),
    'rouge-l': lambda prediction, gold, classes: rouge_l(prediction, gold),
    'edit': lambda prediction, gold, classes: code_similarity(prediction, gold),
    'class': classification_score,
    'retrieval': lambda prediction, gold, classes: retrieval_score(prediction, gold),
    'count': lambda prediction, gold, classes: count_score(prediction, gold),
}


def best_score(
        metric: str, prediction: str, golds: Sequence[str], classes: Sequence[str] = ()) -> float:
    """Return the best score over all right answers, 0 to 1; raises KeyError: no such metric."""
    return max((METRICS[metric](prediction, gold, classes) for gold in golds), default=0.0)
