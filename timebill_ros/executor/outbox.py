# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The engine's way to the node: frames from several threads, and a pulse while it starts."""

from collections.abc import Iterator
from contextlib import contextmanager
import threading
from typing import Any, BinaryIO

from timebill_ros.executor.messages import Loading, write_message

PULSE_S = 2.0


class Outbox:
    """Writes messages, from any thread; raises ChannelClosed once nobody reads."""

    def __init__(self, stream: BinaryIO) -> None:
        """Write to ``stream``."""
        self._stream = stream
        self._lock = threading.Lock()

    def send(self, *messages: Any) -> None:
        """Write the messages in this order."""
        with self._lock:
            for message in messages:
                write_message(self._stream, message)


class StartReport:
    """
    Progress of the start: each new step, and every PULSE_S how far it is.

    Single steps (parsing a model file) last a minute without coming back to us. A start has no
    deadline; what the pulse shows is that the process runs.
    """

    def __init__(self, outbox: Outbox) -> None:
        """Report through ``outbox``."""
        self._outbox = outbox
        self._state = Loading('starting', 0.0)
        self._ended = threading.Event()

    def __call__(self, what: str, fraction: float) -> None:
        """Say what is being done and how much of it is done, 0..1."""
        news = what != self._state.what
        self._state = Loading(what, fraction)
        if news:
            self._outbox.send(self._state)

    @contextmanager
    def pulse(self) -> Iterator[None]:
        """Repeat the latest report until the block ends."""
        beat = threading.Thread(target=self._beat, name='start pulse', daemon=True)
        beat.start()
        try:
            yield
        finally:
            self._ended.set()
            beat.join()

    def _beat(self) -> None:
        while not self._ended.wait(PULSE_S):
            self._outbox.send(self._state)
