# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Starts the engine process, watches it, kills it when it hangs, and replaces it.

Everything the node hears from it is an event, handed to ``post`` in a thread of the supervisor;
the node queues events and handles them in its own thread. Nothing here imports ROS or torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
import threading
import time
from typing import Any

from timebill_ros.executor.engine_process import CommandLine, EngineProcess
from timebill_ros.executor.messages import Load, LoadFailed, Ready, Shutdown
from timebill_ros.query import ErrorCode, NS_PER_S

FIRST_BACKOFF_S = 0.5
LAST_BACKOFF_S = 30.0
# A second look this much later, so that a node that was itself held up does not blame the engine.
SECOND_LOOK_S = 0.25
SHUTDOWN_GRACE_S = 1.0


class EngineState(IntEnum):
    """Where the engine stands (``msg/ExecutorStatus``)."""

    STARTING = 0
    READY = 1
    RESTARTING = 2
    FAILED = 3


@dataclass
class EngineSaid:
    """A message of the engine process of this generation."""

    generation: int
    message: Any


@dataclass
class EngineLost:
    """The engine process of this generation is gone, and so is all its work."""

    generation: int
    error_code: ErrorCode  # ENGINE_DIED or ENGINE_HUNG; ENGINE_NOT_READY: it never got ready
    error_msg: str
    retry_s: float  # until the next start


@dataclass
class EngineLine:
    """A line that the engine process wrote to stdout or stderr."""

    text: str


@dataclass
class Limits:
    """How long the engine may be silent, in seconds."""

    timeout_s: float = 10.0  # once it is ready; longer than the longest chunk or step
    start_timeout_s: float = 120.0  # while it loads


class Supervisor:
    """
    Keeps one engine process running until ``stop``.

    ``state`` and ``generation`` may be read from any thread; a generation is one process, counted
    from 1.
    """

    def __init__(
        self,
        command_line: CommandLine,
        environment: Mapping[str, str],
        load: Load,
        post: Callable[[Any], None],
        limits: Limits,
    ) -> None:
        """Prepare; ``start`` starts. ``post`` gets EngineSaid, EngineLost and EngineLine events."""
        self.limits = limits
        self.state = EngineState.STARTING
        self.message = ''  # one line for the operator; '' = all is well
        self.generation = 0
        self._command_line = command_line
        self._environment = environment
        self._load = load
        self._post = post
        self._process: EngineProcess | None = None
        self._was_ready = False  # this generation
        self._load_error = ''
        self._backoff_s = FIRST_BACKOFF_S
        self._wake = threading.Event()  # something about the process changed
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name='engine supervisor', daemon=True)

    @property
    def pid(self) -> int:
        """Process id of the engine; 0 while there is none."""
        process = self._process
        return 0 if process is None else process.pid

    @property
    def restarts(self) -> int:
        """Engine processes replaced so far."""
        return max(0, self.generation - 1)

    def start(self) -> None:
        """Start the engine and the watch over it; returns at once."""
        self._thread.start()

    def send(self, generation: int, message: Any) -> None:
        """Send to the engine process of this generation; never blocks, and is lost if that is."""
        process = self._process
        if process is not None and generation == self.generation:
            process.send(message)

    def stop(self) -> None:
        """End the engine, kindly for SHUTDOWN_GRACE_S, and the watch; returns when it is gone."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    # --- the watch, in its own thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                lost = self._run_one()
            except Exception as error:  # whatever it is: without this thread nothing is replaced
                lost = self._lost(
                    ErrorCode.ENGINE_DIED, f'the watch over the engine failed: {error!r}'
                )
            if self._stopping.is_set():
                return
            self.state = EngineState.RESTARTING if self._was_ready else EngineState.FAILED
            self.message = lost.error_msg
            self._post(lost)
            self._stopping.wait(lost.retry_s)

    def _run_one(self) -> EngineLost:
        """Start one engine process and see it to its end."""
        self.generation += 1
        self._was_ready = False
        self._load_error = ''
        try:
            process = EngineProcess(
                self._command_line,
                self._environment,
                self._heard,
                lambda line: self._post(EngineLine(line)),
                self._wake.set,
            )
        except OSError as error:
            self._load_error = f'the engine process cannot be started: {error}'
            return self._lost(ErrorCode.ENGINE_NOT_READY, self._load_error)
        self._process = process
        process.send(self._load)
        try:
            return self._watch(process)
        finally:
            if self._stopping.is_set():
                process.send(Shutdown())
                process.wait(SHUTDOWN_GRACE_S)
            self._process = None
            process.kill()

    def _watch(self, process: EngineProcess) -> EngineLost:
        """Return when the process has ended, sent nonsense, hangs, or is no longer wanted."""
        suspected = False
        while True:
            left_s = SECOND_LOOK_S if suspected else self._silence_left_s(process)
            self._wake.wait(max(0.0, left_s))
            self._wake.clear()
            if self._stopping.is_set():
                return self._lost(ErrorCode.SERVER_SHUTDOWN, 'the node was asked to stop')
            if process.ended or self._load_error:
                return self._ended(process)
            if self._silence_left_s(process) > 0:
                suspected = False
            elif suspected:
                return self._hung()
            else:
                suspected = True

    def _silence_left_s(self, process: EngineProcess) -> float:
        limit_s = self.limits.timeout_s if self._was_ready else self.limits.start_timeout_s
        return limit_s - (time.monotonic_ns() - process.last_heard_ns) / NS_PER_S

    def _hung(self) -> EngineLost:
        if not self._was_ready:
            limit_s = self.limits.start_timeout_s
            return self._lost(
                ErrorCode.ENGINE_NOT_READY,
                f'the engine said nothing for engine_start_timeout_s = {limit_s:g} s at its start',
            )
        return self._lost(
            ErrorCode.ENGINE_HUNG,
            f'the engine gave no sign of life for engine_timeout_s = {self.limits.timeout_s:g} s '
            'and is replaced',
        )

    def _ended(self, process: EngineProcess) -> EngineLost:
        if not process.fault:
            process.wait(SHUTDOWN_GRACE_S)  # its pipe closes a moment before it is dead
        how = process.fault or process.exit_text or 'closed its pipe'
        if self._load_error:
            return self._lost(ErrorCode.ENGINE_NOT_READY, self._load_error)
        if not self._was_ready:
            return self._lost(
                ErrorCode.ENGINE_NOT_READY,
                f'the engine process ended while starting ({how}); see the log',
            )
        return self._lost(
            ErrorCode.ENGINE_DIED, f'the engine process ended ({how}) and is replaced'
        )

    def _lost(self, error_code: ErrorCode, error_msg: str) -> EngineLost:
        """Describe the loss; the waits between starts grow until an engine got ready."""
        if self._was_ready:
            self._backoff_s = FIRST_BACKOFF_S
        retry_s = self._backoff_s
        self._backoff_s = min(2 * self._backoff_s, LAST_BACKOFF_S)
        return EngineLost(self.generation, error_code, error_msg, retry_s)

    # --- in the process's reader thread

    def _heard(self, process: EngineProcess, message: Any) -> None:
        if isinstance(message, Ready):
            self._was_ready = True
            self.message = ''
            self.state = EngineState.READY
            self._wake.set()  # another limit holds from now on
        elif isinstance(message, LoadFailed):
            self._load_error = message.error_msg
            self._wake.set()
        self._post(EngineSaid(self.generation, message))
