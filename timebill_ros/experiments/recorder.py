# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Where an experiment's rows go: one JSON line each, appended as soon as it is known.

The first line says what was asked for. A second start with the same wishes goes on after the last
row; with others it refuses, so that no summary mixes two experiments.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
import json
from math import inf, isfinite
from pathlib import Path
import time
from typing import Any

from timebill_ros.cli.profile_progress import ProgressBar
from timebill_ros.length_predictor.data import read_jsonl

Row = dict[str, Any]
ROWS = 'rows.jsonl'


class OtherExperiment(ValueError):
    """The folder holds rows of an experiment with other settings; the message says which."""


@dataclass
class Recorder:
    """
    The rows of one experiment, on disk and in memory.

    ``todo`` yields the cases that have no rows yet, until ``limit_s`` after the first one.
    """

    folder: Path
    header: Row
    bar: ProgressBar
    limit_s: float = inf
    rows: list[Row] = field(default_factory=list)
    _end_s: float = inf
    _planned: set[str] = field(default_factory=set)
    _done: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Read what is there; raises OtherExperiment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / ROWS
        found = list(read_jsonl(path)) if path.exists() else []
        if found and found[0] != self.header:
            other = [name for name in {**self.header, **found[0]}
                     if found[0].get(name) != self.header.get(name)]
            raise OtherExperiment(
                f'{path} is of another experiment ({", ".join(other)} differ); move it away, or '
                'give another --out')
        counts: dict[str, list[Row]] = {}
        for row in found[1:]:
            counts.setdefault(row['case'], []).append(row)
        whole = {case for case, rows in counts.items() if len(rows) == rows[0]['of']}
        self.rows = [row for row in found[1:] if row['case'] in whole]
        self._done = whole
        # written anew: without a line that was cut off, and without cases that were
        with path.open('w', encoding='utf-8') as out:
            out.writelines(_line(row) for row in [self.header, *self.rows])

    def todo(self, cases: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Yield (key, case) of those that have no rows yet, and show how far it is."""
        self._planned |= {case[0] for case in cases}
        left = [case for case in cases if case[0] not in self._done]
        began_s = time.monotonic()
        self._end_s = min(self._end_s, began_s + self.limit_s)
        for number, case in enumerate(left):
            now_s = time.monotonic()
            if now_s >= self._end_s:
                return
            left_s = (now_s - began_s) / number * (len(left) - number) if number else 0.0
            done = len(cases) - len(left) + number
            self.bar.move(self.header['experiment'], done, len(cases), left_s)
            yield case

    def add(self, case: str, rows: Row | Sequence[Row]) -> None:
        """Write the rows of a case."""
        several = [rows] if isinstance(rows, dict) else list(rows)
        whole = [{'case': case, 'of': len(several), **_plain(row)} for row in several]
        with (self.folder / ROWS).open('a', encoding='utf-8') as out:
            out.write(''.join(_line(row) for row in whole))
        self.rows += whole
        self._done.add(case)

    def run(self, cases: Sequence[tuple[str, Any]], measure: Callable[[Any], Row | list[Row]],
            ) -> None:
        """Measure every case that has no rows yet."""
        for key, case in self.todo(cases):
            self.add(key, measure(case))

    def note_progress(self) -> None:
        """Write how many of the cases planned so far have rows."""
        done = sum(case in self._done for case in self._planned)
        self.add(f'progress/{time.time_ns()}', {'planned': len(self._planned), 'done': done})


def read_rows(folder: Path) -> tuple[Row, list[Row]]:
    """Return the header and the rows of an experiment that was run; they may be gzipped."""
    packed = folder / f'{ROWS}.gz'
    header, *rows = read_jsonl(packed if packed.exists() else folder / ROWS)
    return header, rows


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + '\n'


def _plain(value: Any) -> Any:
    """Return the value as JSON has it; not-a-number and infinity become null."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value
