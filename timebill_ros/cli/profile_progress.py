# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What both ways to profile report: a bar on standard error, and how it ended."""

from dataclasses import dataclass
import sys
import threading

from timebill_ros.time_estimator.coefficients import TimingCoefficients

_WIDTH = 30


@dataclass
class Outcome:
    """How a profile ended; ``error_msg`` is '' if it was made."""

    coefficients: TimingCoefficients | None
    path: str
    error_msg: str = ''


class ProgressBar:
    """A line on standard error; on a terminal it is rewritten in place. Any thread may call it."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._terminal = sys.stderr.isatty()
        self._lock = threading.Lock()
        self._shown = ''

    def __enter__(self) -> 'ProgressBar':
        """Show what ``say`` and ``move`` tell."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the line."""
        if self._terminal and self._shown:
            print(file=sys.stderr)

    def say(self, text: str) -> None:
        """Show a step that has no end in sight."""
        self._show(text, text)

    def move(self, stage: str, done: int, total: int, left_s: float) -> None:
        """Show how many points are done and how long the rest takes."""
        filled = _WIDTH * done // max(1, total)
        bar = '#' * filled + '.' * (_WIDTH - filled)
        self._show(
            f'[{bar}] {done}/{total} {stage}, about {left_s:.0f} s left',
            # into a file: a line for each tenth
            f'{10 * done // max(1, total) * 10} % measured, about {left_s:.0f} s left')

    def _show(self, line: str, milestone: str) -> None:
        with self._lock:
            if self._terminal:
                self._shown = line
                print(f'\r\x1b[K{line}', end='', flush=True, file=sys.stderr)
            elif milestone.partition(',')[0] != self._shown:
                self._shown = milestone.partition(',')[0]
                print(milestone, flush=True, file=sys.stderr)
