# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Rows survive an interruption, and never mix two experiments."""

from collections.abc import Callable
import json
from pathlib import Path

import pytest

from timebill_ros.cli.profile_progress import ProgressBar
from timebill_ros.experiments.recorder import OtherExperiment, read_rows, Recorder, ROWS

HEADER = {'experiment': 'budgets', 'seed': 7, 'quick': True}
CASES = [(f'case/{number}', number) for number in range(4)]


def measured(numbers: list[int]) -> Callable[[int], dict[str, int]]:
    """Return a measurement that notes what it was asked for."""
    def measure(number: int) -> dict[str, int]:
        numbers.append(number)
        return {'value': number}
    return measure


def test_a_second_start_measures_what_is_missing(tmp_path: Path) -> None:
    first: list[int] = []
    recorder = Recorder(tmp_path, HEADER, ProgressBar())
    recorder.run(CASES[:2], measured(first))
    again: list[int] = []
    recorder = Recorder(tmp_path, HEADER, ProgressBar())
    recorder.run(CASES, measured(again))
    recorder.note_progress()
    assert (first, again) == ([0, 1], [2, 3])
    header, rows = read_rows(tmp_path)
    assert header == HEADER
    assert [row['value'] for row in rows[:-1]] == [0, 1, 2, 3]
    assert (rows[-1]['planned'], rows[-1]['done']) == (4, 4)


def test_a_case_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, HEADER, ProgressBar())
    recorder.add('whole', {'value': 1})
    recorder.add('stream', [{'value': 2}, {'value': 3}])
    path = tmp_path / ROWS
    path.write_text(path.read_text()[:-5])       # the end of the last line is gone
    recorder = Recorder(tmp_path, HEADER, ProgressBar())
    assert [row['value'] for row in recorder.rows] == [1]
    assert [key for key, _ in recorder.todo([('whole', 0), ('stream', 0)])] == ['stream']


def test_rows_of_another_experiment_are_not_touched(tmp_path: Path) -> None:
    Recorder(tmp_path, HEADER, ProgressBar()).add('whole', {'value': 1})
    before = (tmp_path / ROWS).read_text()
    with pytest.raises(OtherExperiment, match='seed'):
        Recorder(tmp_path, {**HEADER, 'seed': 8}, ProgressBar())
    assert (tmp_path / ROWS).read_text() == before


def test_not_a_number_is_null(tmp_path: Path) -> None:
    Recorder(tmp_path, HEADER, ProgressBar()).add('a', {'x': float('nan'), 'y': [float('inf'), 1]})
    row = json.loads((tmp_path / ROWS).read_text().splitlines()[1])
    assert (row['x'], row['y']) == (None, [None, 1])


def test_no_case_begins_after_the_limit(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, HEADER, ProgressBar(), limit_s=0.0)
    assert not list(recorder.todo(CASES))
    recorder.note_progress()
    assert (recorder.rows[-1]['planned'], recorder.rows[-1]['done']) == (4, 0)
