# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The metrics agree with LongBench's own evaluation.

Expected values are what its metrics.py gave with rouge 1.0.1 and fuzzywuzzy 0.18.0 (with
python-Levenshtein), except where a paper's worked example is named.
"""

import pytest

from timebill_ros.experiments.metrics import best_score

CLASSES = ['Other location', 'Date', 'Abbreviation', 'Expression abbreviated', 'Number', 'Other']


@pytest.mark.parametrize(('prediction', 'gold', 'expected'), [
    ('It is a red cup', 'the red cup', 2 / 3),
    ('Bob Dylan.', 'bob dylan', 1.0),
    ('5 percent points', '0.05 F1', 0.0),
    ('the cat sat on a mat', 'a cat', 0.4),
])
def test_f1(prediction: str, gold: str, expected: float) -> None:
    assert best_score('f1', prediction, [gold]) == pytest.approx(expected)


@pytest.mark.parametrize(('prediction', 'gold', 'expected'), [
    # Lin 2004, section 3: 0.75 and 0.5
    ('police kill the gunman', 'police killed the gunman', 0.749999995),
    ('the gunman kill police', 'police killed the gunman', 0.499999995),
    # Lin 2004, section 3.2: the union of both candidates' subsequences holds 4 of 5 words
    ('w1 w2 w6 w7 w8. w1 w3 w8 w9 w5', 'w1 w2 w3 w4 w5', 2 * 0.8 * 0.5 / 1.3),
    ('The robot went to the kitchen. It fetched a cup.',
     'The robot fetched a red cup from the kitchen. Then it went back.', 0.69565216),
    ('', 'a summary', 0.0),
])
def test_rouge_l(prediction: str, gold: str, expected: float) -> None:
    assert best_score('rouge-l', prediction, [gold]) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(('prediction', 'gold', 'expected'), [
    ('        if e.text == lang:', '            if e.text == language:', 0.87),
    ('```python\n# note\n    return x', '    return y', 0.92),
    ('return a + b;', 'return a - b;', 0.92),
    ('# only a comment', 'return', 0.0),
    ('next on next 7 the line and a', 'hills. # on # x x dog, 12 x 7 and the mat. a mat. 7', 0.43),
])
def test_code_similarity(prediction: str, gold: str, expected: float) -> None:
    assert best_score('edit', prediction, [gold]) == pytest.approx(expected)


@pytest.mark.parametrize(('prediction', 'gold', 'expected'), [
    ('Other location', 'Other location', 1.0),
    ('Number of something and Date', 'Date', 0.5),
    ('Abbreviation Expression abbreviated', 'Expression abbreviated', 0.5),
    ('Abbreviation', 'Date', 0.0),
])
def test_classification(prediction: str, gold: str, expected: float) -> None:
    assert best_score('class', prediction, [gold], CLASSES) == expected


@pytest.mark.parametrize(('prediction', 'gold', 'expected'), [
    ('There are 46 paragraphs, not 40.', '46', 0.5), ('none', '46', 0.0), ('12', '12', 1.0)])
def test_count(prediction: str, gold: str, expected: float) -> None:
    assert best_score('count', prediction, [gold]) == expected


@pytest.mark.parametrize(('prediction', 'expected'), [
    ('Paragraph 19', 1.0), ('Paragraph 19 or 3', 0.5), ('The 3rd', 0.0)])
def test_retrieval(prediction: str, expected: float) -> None:
    assert best_score('retrieval', prediction, ['Paragraph 19']) == expected


def test_the_best_of_several_right_answers_counts() -> None:
    assert best_score('f1', 'half', ['a whole', 'half']) == 1.0
    assert best_score('f1', 'half', []) == 0.0
