# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM, heard at once although the main thread waits inside the middleware."""

from collections.abc import Callable
import os
import signal
import threading
import time

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# The Ctrl-C of a terminal reaches launch and us, and launch then signals us once more.
_SAME_REQUEST_S = 1.0


class StopSignals:
    """
    Hears the signals from the moment it is entered, and calls back in a thread of its own.

    One that comes more than a moment after the first ends the process. After the context they are
    ignored: what is left is the end of the process. rclpy's own handlers would take the context
    down before open goals have their results.
    """

    def __init__(self) -> None:
        """Prepare; enter it before anything that takes long (main thread only)."""
        self._callback: Callable[[], None] | None = None
        self._heard = False

    def call(self, callback: Callable[[], None]) -> None:
        """Call this for the first signal, at once if it has come; it may be called twice then."""
        self._callback = callback
        if self._heard:
            callback()

    def __enter__(self) -> 'StopSignals':
        """Install the handlers."""
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        self._previous_fd = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for each in _SIGNALS:
            signal.signal(each, lambda *_: None)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ignore the signals from now on."""
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        signal.set_wakeup_fd(self._previous_fd)
        os.close(self._write_fd)
        self._thread.join()
        os.close(self._read_fd)

    def _watch(self) -> None:
        insist_s = 0.0
        while received := os.read(self._read_fd, 1):
            if received[0] not in _SIGNALS:
                continue
            if not self._heard:
                insist_s = time.monotonic() + _SAME_REQUEST_S
                self._heard = True
                if self._callback is not None:
                    self._callback()
            elif time.monotonic() > insist_s:
                os._exit(128 + received[0])
