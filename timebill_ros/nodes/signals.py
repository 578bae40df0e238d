# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM, heard at once although the main thread waits inside the middleware."""

from collections.abc import Callable
import os
import signal
import threading
from types import TracebackType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """
    Calls back, in a thread of its own, for the first of the signals; the second ends the process.

    rclpy's own handlers would take the context down before open goals have their results.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        """Prepare; the context manager installs and removes the handlers (main thread only)."""
        self._callback = callback

    def __enter__(self) -> 'StopSignals':
        """Install the handlers."""
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        self._previous_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        self._previous = [signal.signal(each, lambda *_: None) for each in _SIGNALS]
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put back the handlers that were there."""
        for each, previous in zip(_SIGNALS, self._previous):
            signal.signal(each, previous)
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._write_fd)
        self._thread.join()
        os.close(self._read_fd)

    def _watch(self) -> None:
        asked = False
        while received := os.read(self._read_fd, 1):
            if received[0] not in _SIGNALS:
                continue
            if asked:
                os._exit(128 + received[0])
            asked = True
            self._callback()
