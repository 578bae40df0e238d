# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A ``timebill serve`` of our own, for the demo, the benchmarks and the tests."""

from collections import deque
from collections.abc import Mapping
import os
import signal
import subprocess
import sys
import threading
import time

KEPT_LINES = 200
STOP_S = 10.0
# The directory that the caller stands in ('') may not shadow the installed package.
_MAIN = (
    'import sys; sys.path = [each for each in sys.path if each]; '
    'from timebill_ros.executor.lifeline import die_with_parent; die_with_parent(); '
    'from {entry} import main; sys.exit(main())'
)


def python_command(entry: str, arguments: list[str]) -> list[str]:
    """Return the command line of a child that runs the ``main`` of an installed module of ours."""
    return [sys.executable, '-c', _MAIN.format(entry=entry), *arguments]


class ServerProcess:
    """Runs a server while the context lasts, and keeps the last lines of its log."""

    def __init__(
        self,
        arguments: list[str],
        environment: Mapping[str, str] | None = None,
        show: bool = False,
        entry: str = '',
    ) -> None:
        """
        Prepare ``timebill serve`` with these arguments; ``show`` prints its log as it comes.

        ``entry`` names another module whose ``main`` runs a server; it takes the arguments as is.
        """
        self._command = (
            python_command(entry, arguments)
            if entry
            else python_command('timebill_ros.cli', ['serve', *arguments])
        )
        self._environment = dict(os.environ if environment is None else environment)
        self._show = show
        self.log: deque[str] = deque(maxlen=KEPT_LINES)

    def __enter__(self) -> 'ServerProcess':
        """Start it; the server is there once its engine is ready."""
        self.process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors='replace',
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it: kindly, then not."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(timeout=1.0)

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self.process.poll() is None

    def wait_for_line(self, part: str, timeout_s: float) -> bool:
        """Wait until a line of its log holds this; False: it did not, or the process ended."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            if any(part in line for line in list(self.log)):
                return True
            if not self.is_running:
                return False
            time.sleep(0.05)
        return False

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line.rstrip())
            if self._show:
                print(line, end='', file=sys.stderr, flush=True)
