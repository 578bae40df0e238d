# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""One engine process with its two pipes and the threads that serve them."""

from collections.abc import Callable, Mapping
import os
import queue
import select
import signal
import subprocess
import threading
import time
from typing import Any, BinaryIO

from timebill_ros.executor.messages import ChannelClosed, encode, read_message

# A process that a driver holds in the kernel does not die at once; the node goes on without it.
REAP_S = 5.0

CommandLine = Callable[[int, int], list[str]]


class EngineProcess:
    """
    A started engine; messages go in through a queue and come out through a callback.

    Sending never blocks: what the pipe does not hold at once, because it is long or because the
    engine is stopped and reads nothing, a writer thread writes. ``on_message`` and ``on_line`` are
    called in threads of this object.
    ``last_heard_ns`` is when the last message came.
    """

    def __init__(
        self,
        command_line: CommandLine,
        environment: Mapping[str, str],
        on_message: Callable[['EngineProcess', Any], None],
        on_line: Callable[[str], None],
        on_end: Callable[[], None],
    ) -> None:
        """
        Start the process in a session of its own; raises OSError if it cannot be started.

        ``command_line(read_fd, write_fd)`` gives the arguments; ``on_message(process, message)``
        gets every message,
        ``on_line`` each line of its stdout and stderr, ``on_end`` is called once when its pipe
        ends.
        """
        self.last_heard_ns = time.monotonic_ns()
        self.ended = False  # its pipe has ended, and so has the process, or will at once
        self.fault = ''  # what was wrong with what it sent; '' = nothing
        self._on_message = on_message
        self._on_line = on_line
        self._on_end = on_end
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._n_outgoing = 0  # frames in it, or being written by the writer thread
        self._sending = threading.Lock()
        engine_reads, we_write = os.pipe()
        we_read, engine_writes = os.pipe()
        try:
            self._process = subprocess.Popen(
                command_line(engine_reads, engine_writes),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(engine_reads, engine_writes),
                start_new_session=True,
            )
        except OSError:
            os.close(we_write)
            os.close(we_read)
            raise
        finally:
            os.close(engine_reads)
            os.close(engine_writes)
        self._write_fd = we_write
        self._threads = [
            threading.Thread(target=self._read, args=(os.fdopen(we_read, 'rb'),), daemon=True),
            threading.Thread(target=self._write, daemon=True),
            threading.Thread(target=self._forward_lines, daemon=True),
        ]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:  # the system grants no more threads
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise OSError(str(error)) from error

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its group."""
        return self._process.pid

    @property
    def exit_text(self) -> str:
        """How it ended, for people; '' while it runs."""
        code = self._process.poll()
        if code is None:
            return ''
        if code >= 0:
            return f'exit status {code}'
        try:
            return f'signal {signal.Signals(-code).name}'
        except ValueError:  # most real-time signals have no name
            return f'signal {-code}'

    def send(self, message: Any) -> None:
        """
        Hand a message to the engine; returns at once, also when it is dead or stopped.

        A short one is written here where the pipe has room, as it does while the engine listens: a
        thread that is woken for it has to wait until this one lets go of the interpreter.
        """
        frame = encode(message)
        with self._sending:
            if self._n_outgoing or len(frame) > select.PIPE_BUF or not self._has_room():
                self._n_outgoing += 1
                self._outgoing.put(frame)
                return
            try:
                os.write(self._write_fd, frame)  # whole, because it is no longer than PIPE_BUF
            except OSError:
                pass  # the reader sees the same end and reports it

    def wait(self, timeout_s: float) -> bool:
        """Wait for the process to end; False if it still runs."""
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """End the process group with SIGKILL, which a stopped process obeys too, and reap it."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.wait(REAP_S)
        self._outgoing.put(None)
        for thread in self._threads:
            thread.join(timeout=1.0)

    def _read(self, stream: BinaryIO) -> None:
        with stream:
            try:
                while True:
                    message = read_message(stream)
                    self.last_heard_ns = time.monotonic_ns()
                    self._on_message(self, message)
            except ChannelClosed:
                pass
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                self.fault = f'sent a bad frame: {error}'
        self.ended = True
        self._on_end()

    def _has_room(self) -> bool:
        """Tell whether PIPE_BUF bytes can be written without blocking; not once it is closed."""
        if self._write_fd < 0:
            return False
        poll = select.poll()
        poll.register(self._write_fd, select.POLLOUT)
        return bool(poll.poll(0))

    def _write(self) -> None:
        try:
            while (frame := self._outgoing.get()) is not None:
                while frame:
                    frame = frame[os.write(self._write_fd, frame):]
                with self._sending:
                    self._n_outgoing -= 1
        except OSError:
            pass  # the reader sees the same end and reports it
        with self._sending:
            os.close(self._write_fd)
            self._write_fd = -1

    def _forward_lines(self) -> None:
        output = self._process.stdout
        assert output is not None
        with output:
            for line in output:
                text = line.decode('utf-8', 'replace').rstrip()
                if text:
                    self._on_line(text)
