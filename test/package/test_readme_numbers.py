# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The numbers in README.md are those of the committed summaries."""

from pathlib import Path
import subprocess
import sys

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 5 * 2**20


def test_readme_shows_the_committed_numbers() -> None:
    done = subprocess.run(
        [sys.executable, 'tools/readme_numbers.py', '--check'], cwd=ROOT, capture_output=True,
        text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_committed_report_is_small() -> None:
    files = [path for path in (ROOT / 'docs' / 'report').rglob('*') if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
