# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The calibration node beside a query server that runs in the foreground.

A process of its own: it shares neither the interpreter lock with the thread that owns the deadlines
nor a fate with it. It is started again if it ends, unless its parameters are wrong, and ends when
its parent does, however that dies.
"""

import os
import signal
import subprocess
import sys
import threading

from timebill_ros.nodes.run import EXIT_BAD_CONFIGURATION

RESTART_S = 2.0
STOP_S = 5.0
_MAIN = f'from {__name__} import child; child()'


class CalibrationProcess:
    """Keeps ``timebill_calibration`` running while the context lasts."""

    def __init__(self, ros_arguments: list[str]) -> None:
        """Prepare it with the arguments of the query server."""
        safe_path = ['-P'] if sys.version_info >= (3, 11) else []
        self._command = [sys.executable, *safe_path, '-c', _MAIN, *ros_arguments]
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep_running, daemon=True)

    def __enter__(self) -> 'CalibrationProcess':
        """Start it; returns at once."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End it: kindly, then not."""
        self._stopping.set()
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
        self._thread.join(STOP_S)
        if process is not None and process.poll() is None:
            process.kill()

    def _keep_running(self) -> None:
        while not self._stopping.is_set():
            # A session of its own: the terminal's Ctrl-C is for the server, which ends this one.
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, start_new_session=True
            )
            status = self._process.wait()
            if status == EXIT_BAD_CONFIGURATION:  # it said what, and would say so for ever
                return
            if not self._stopping.wait(RESTART_S):
                print(
                    f'timebill serve: timebill_calibration ended ({status}), starts again',
                    file=sys.stderr,
                    flush=True,
                )


def child() -> None:
    """Be the node; standard input ends when the parent does."""
    from timebill_ros.nodes import calibration

    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(calibration.main(sys.argv[1:]))


def _end_with_parent() -> None:
    # Not sys.stdin.read: its lock, held here, would abort an interpreter that ends by itself.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
