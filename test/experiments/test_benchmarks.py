# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill bench NAME``: every benchmark's arguments can be read, beside those that all have."""

import argparse
import sys

import pytest

from timebill_ros.cli import bench

WITH_ROS = ('node', 'margin')


@pytest.mark.parametrize('name', bench.BENCHMARKS)
def test_a_benchmark_says_what_it_takes(
        name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if name in WITH_ROS:
        pytest.importorskip('rclpy')
    line = ['bench', name, '--help']
    monkeypatch.setattr(sys, 'argv', ['timebill', *line])
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    with pytest.raises(SystemExit) as left:
        parser.parse_args(line[1:])
    assert left.value.code == 0
    assert '--out FILE' in capsys.readouterr().out
