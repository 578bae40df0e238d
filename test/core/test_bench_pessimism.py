# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The replay of lengths keeps the target through a change of source, censored as in the server."""

import argparse
import gzip
import json
from pathlib import Path
import random
from typing import Any

import pytest

from timebill_ros.experiments import bench_pessimism


@pytest.fixture
def lengths(tmp_path: Path) -> Path:
    """Return a file of a source with short answers and one with long ones."""
    rng = random.Random(8)
    path = tmp_path / 'lengths.jsonl.gz'
    with gzip.open(path, 'wt') as lines:
        lines.write('{"target": "none"}\n')
        for number in range(3000):
            source, scale = ('calm', 60.0) if number % 2 else ('wild', 110.0)
            n = min(512, 1 + int(rng.gammavariate(1.5, scale)))
            lines.write(json.dumps(
                {'id': f'{source}/{number}', 'n_prompt': 50 + number % 300, 'n': n}) + '\n')
    return path


def replayed(lengths: Path, capsys: pytest.CaptureFixture[str], slower: float) -> dict[str, Any]:
    arguments = argparse.Namespace(
        lengths=lengths, queries=4000, slower=slower, json=True, out=None)
    assert bench_pessimism.run(arguments) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def test_the_learned_share_is_the_target(
        lengths: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = replayed(lengths, capsys, 1.0)
    assert report['queries'] >= 4000
    for row in report['rows']:
        if row['factor'] == 'learned':
            assert abs(row['all']['beyond'] - row['target']) < min(0.01, row['target'] / 2)
            assert row['all']['missed'] <= row['target']


def test_steps_that_become_slower_are_learned_as_well(
        lengths: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = replayed(lengths, capsys, 1.3)
    for row in report['rows']:
        if row['factor'] == 'learned':
            assert row['time_factor_end'] > 1.1
            assert row['after']['missed'] <= 2 * row['target']      # length or time, each delta
