# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The questions: the same for the same seed, with right answers that count as right."""

import gzip
import json
from pathlib import Path

import pytest

from timebill_ros.experiments.tasks import generated, longbench, spread


def test_every_set_has_thirty_items_and_the_seed_decides_them() -> None:
    items = generated.generated()
    for name in generated.SETS:
        assert sum(item.item_id.startswith(f'{name}/') for item in items) >= 30
    assert items == generated.generated()
    assert items != generated.generated(seed=8)
    assert len({item.item_id for item in items}) == len(items)


def test_right_answers_score_one_and_others_less() -> None:
    for item in generated.generated():
        assert item.score(item.golds[0]) == 1.0
        assert item.score('I do not know.') < 0.5


def test_what_is_asked_about_is_in_the_prompt_once() -> None:
    for item in generated.generated():
        if item.group == 'needle':
            assert item.prompt.count(item.golds[0]) == 1
        if item.group == 'counting':
            name = item.prompt.split('Did ')[1].split()[0]
            assert item.prompt.count(f'{name} rang the bell.') == item.classes.index(
                item.golds[0]) + 1


def test_a_part_of_the_items_has_all_groups() -> None:
    items = generated.generated()
    assert len({item.group for item in spread(items, 6)}) == 6
    assert len(spread(items, 10_000)) == len(items)


def test_longbench_is_read_from_a_file(tmp_path: Path) -> None:
    rows = [
        {'id': 'trec/0', 'task': 'trec', 'prompt': 'Type:',
         'gold': {'answers': ['Date'], 'all_classes': ['Date', 'Food']}},
        {'id': 'qasper/0', 'task': 'qasper', 'prompt': 'Why?', 'gold': ['so', 'because']},
        {'id': 'qasper/1', 'task': 'qasper', 'prompt': 'long ' * 1000, 'gold': ['so']},
        {'id': 'other/0', 'task': 'other', 'prompt': 'Why?', 'gold': ['so']}]
    with gzip.open(tmp_path / longbench.FILE, 'wt') as out:
        out.writelines(json.dumps(row) + '\n' for row in rows)
    path = longbench.data_file(tmp_path)
    assert path is not None
    trec, qasper = longbench.read(path, max_prompt_tokens=1000)
    assert trec.score('\nDate\nFood') == 1.0     # the first line alone counts
    assert qasper.score('because') == 1.0
    assert qasper.max_new_tokens == 128


def test_a_folder_without_longbench_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='docs/experiments.md'):
        longbench.data_file(tmp_path)
