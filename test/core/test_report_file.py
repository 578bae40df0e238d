# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How the report of a benchmark goes out."""

import argparse
import json
from math import nan
from pathlib import Path

import pytest

from timebill_ros.experiments.report_file import deliver, to_json

REPORT = {'date': 'today', 'tiers': ['a', 'b'], 'rows': [{'x': 1, 'y': [2]}, {'x': 3, 'y': []}],
          'traces': {'one': {'rows': [{'x': 1.5}]}}}


def test_a_file_has_a_line_per_row() -> None:
    text = to_json(REPORT)
    assert json.loads(text) == REPORT
    lines = text.splitlines()
    assert '"tiers": ["a", "b"],' in lines and '{"x": 1, "y": [2]},' in lines
    with pytest.raises(ValueError):
        to_json({'x': nan})


def test_a_report_is_written_and_printed_as_asked(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'new' / 'report.json'
    deliver(REPORT, argparse.Namespace(json=False, out=out), lambda report: report['date'])
    assert capsys.readouterr().out == 'today\n' and json.loads(out.read_text()) == REPORT
    deliver(REPORT, argparse.Namespace(json=True, out=None), str)
    assert json.loads(capsys.readouterr().out) == REPORT
