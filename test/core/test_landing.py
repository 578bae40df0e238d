# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Where a response may end softly."""

import json
import random

import pytest

from timebill_ros.budget.landing import land, landing_point
from timebill_ros.budget.landing_json import json_landing


@pytest.mark.parametrize('text, kept, kind', [
    ('One done. Two is not', 'One done.', 'sentence'),
    ('He said "stop!" Then he', 'He said "stop!"', 'sentence'),
    ('It weighs 3.5 kg. About 4.', 'It weighs 3.5 kg.', 'sentence'),
    ('Use a tool, e.g. a hammer or', 'Use a tool, e.g. a hammer', 'word'),
    ('Ask Dr. Smith. He kn', 'Ask Dr. Smith.', 'sentence'),
    ('Steps:\n1. Go in\n2. Go ou', 'Steps:\n1. Go in', 'item'),
    ('- one\n- two\n- thr', '- one\n- two', 'item'),
    ('- Take it. Then\n- put', '- Take it. Then', 'item'),
    ('なるほど。そして', 'なるほど。', 'sentence'),
    ('No end in sigh', 'No end in', 'word'),
    ('Word', 'Word', 'word'),
    ('  ', '', 'nothing'),
    ('', '', 'nothing')])
def test_text_is_cut_after_what_is_whole(text: str, kept: str, kind: str) -> None:
    point = landing_point(text)
    assert (point.apply(text), point.kind) == (kept, kind)


def test_code_is_cut_after_a_line_and_its_fence_closed() -> None:
    text = 'Run this.\n```python\nopen()\nclose('
    assert landing_point(text).apply(text) == 'Run this.\n```python\nopen()\n```'
    done = text + ')\n```\nThat is al'
    assert landing_point(done).apply(done).endswith('close()\n```')


@pytest.mark.parametrize('text, expected', [
    ('{"a": 1, "b": [1, 2, 3', {'a': 1, 'b': [1, 2]}),
    ('{"a": 1, "b', {'a': 1}),
    ('{"a": 1, "b":', {'a': 1}),
    ('{"a": "x", "c": tr', {'a': 'x'}),
    ('{"a": {"b": "unfinis', {'a': {}}),
    ('[{"x": 1, "y": 2}, {"x": 3,', [{'x': 1, 'y': 2}]),       # no element without its fields
    ('[{"x": 1, ', [{'x': 1}]),
    ('```json\n{"a": 1, "b": 2', {'a': 1}),
    ('{"a": "quote \\" and } brace", "b": 5', {'a': 'quote " and } brace'}),
    ('{', {}), ('[', [])])
def test_json_is_balanced(text: str, expected: object) -> None:
    point = landing_point(text)
    assert point.kind == 'json'
    landed = point.apply(text).removeprefix('```json\n').removesuffix('\n```')
    assert json.loads(landed) == expected


def test_any_prefix_of_json_becomes_json() -> None:
    rng = random.Random(2)

    def value(depth: int) -> object:
        kind = rng.randrange(6 if depth else 4)
        if kind == 4:
            return [value(depth - 1) for _ in range(rng.randrange(4))]
        if kind == 5:
            keys = [rng.choice('abc\\"{') + str(i) for i in range(rng.randrange(4))]
            return {key: value(depth - 1) for key in keys}
        return [rng.choice([True, None]), rng.uniform(-1e9, 1e9), rng.randrange(100),
                'str, "ing" }]\\ é'][kind]

    for _ in range(60):
        text = json.dumps([value(4)], indent=rng.choice([None, 1]))
        for end in range(1, len(text) + 1):
            balanced = json_landing(text[:end])
            assert balanced is not None
            json.loads(text[:balanced.end] + balanced.closing)
        assert json_landing(text).complete


@pytest.mark.parametrize('text', ['[see page 4] and', '{not json', '{"a" 1}', '[1,, 2', '{"a":}'])
def test_what_only_looks_like_json_is_text(text: str) -> None:
    assert landing_point(text).kind != 'json'


def test_lands_at_a_sentence_when_the_next_one_would_not_fit() -> None:
    text = 'One sentence is here. Another one is there.'
    assert land(text, 100, 120) is None
    assert land(text, 5, 120).apply(text) == text
    assert land(text + ' And', 5, 121) is None          # goes on: the time may do for this one
    assert land(text + ' And', 0, 121).apply(text + ' And') == text


def test_does_not_give_up_more_than_a_twentieth_for_a_whole_sentence() -> None:
    text = ' The first sentence is a long one.'     # 60 tokens: the next would need 90
    assert land(text, 50, 60) is None
    assert land(text, 4, 60) is None
    assert land(text, 3, 60).apply(text) == text
    long = text * 20                                # 600 tokens, 30 each: the next needs 45
    assert land(long, 50, 600) is None
    assert land(long, 30, 600).apply(long) == long


def test_json_lands_once_complete_or_when_time_is_up() -> None:
    assert land('{"a": 1, "b"', 5, 9) is None
    assert land('{"a": 1}', 5, 9).end == 8
    assert land('{"a": 1, "b"', 0, 9).apply('{"a": 1, "b"') == '{"a": 1}'


def test_with_no_text_at_all_there_is_nothing_to_keep() -> None:
    assert land('', 10, 1) is None
    assert land('', 0, 1).apply('') == ''
