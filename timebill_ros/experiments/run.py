# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Runs one experiment and writes what came of it: rows, summary, figures."""

import importlib
import json
from math import inf, isfinite
from pathlib import Path
from types import ModuleType
from typing import Any

from timebill_ros.cli.profile_progress import ProgressBar
from timebill_ros.experiments.claims import not_as_claimed
from timebill_ros.experiments.recorder import read_rows, Recorder, Row
from timebill_ros.experiments.suite import module_of
from timebill_ros.experiments.workbench import Bench, EngineKeeper, Settings

SUMMARY = 'summary.json'
_DIGITS = 6     # of a number in a summary


def run(name: str, settings: Settings, out: Path, keeper: EngineKeeper,
        limit_s: float = 0.0) -> Path:
    """
    Run an experiment into ``out/name``, or go on with it; returns that folder.

    No case is begun ``limit_s`` (0 = none) after the first one: the summary then says how many are
    missing.
    Raises OtherExperiment, EngineFailed, FileNotFoundError.
    """
    module, folder = importlib.import_module(module_of(name)), out / name
    with ProgressBar() as bar:
        recorder = Recorder(folder, settings.header(name), bar, limit_s or inf)
        try:
            module.measure(Bench(settings, recorder, bar, keeper))
        finally:
            recorder.note_progress()
    summarise(folder, module)
    return folder


def summarise(folder: Path, module: ModuleType | None = None) -> Row:
    """Make the summary of the rows in a folder, and write it."""
    header, rows = read_rows(folder)
    module = module or importlib.import_module(module_of(header['experiment']))
    starts = [row for row in rows if row['case'].startswith('start/')]
    progress = [row for row in rows if row['case'].startswith('progress/')]
    summary = {
        **header, 'title': module.TITLE, 'machine': starts[-1] if starts else {},
        'engine_starts': len(starts), 'queries': sum('outcome' in row for row in rows),
        'cases_planned': progress[-1]['planned'] if progress else 0,
        'cases_done': progress[-1]['done'] if progress else 0,
        'skipped': [{'what': row['skipped'], 'why': row['why']}
                    for row in rows if 'skipped' in row],
        'not_as_claimed': not_as_claimed(rows),
        'results': module.summarise(rows)}
    text = json.dumps(_rounded(summary), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / SUMMARY).write_text(text + '\n', encoding='utf-8')
    return summary


def read_summary(folder: Path) -> Row:
    """Return the summary in a folder."""
    return dict(json.loads((folder / SUMMARY).read_text(encoding='utf-8')))


def _rounded(value: Any) -> Any:
    """Return the value with short numbers; not-a-number becomes null."""
    if isinstance(value, dict):
        return {str(name): _rounded(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    if isinstance(value, float):
        return float(f'{value:.{_DIGITS}g}') if isfinite(value) else None
    return value
