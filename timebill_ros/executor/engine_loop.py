# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The engine process between its two pipes: a talk thread that listens, a model thread that works.

Only the model thread (the process's main thread: accelerators do not like to change threads)
touches the model. The talk thread tokenises and admits, so that a query that cannot be answered is
refused at once, in the middle of another one's work. The process ends with its pipe: when the node
is gone there is nobody to work for.
"""

from collections.abc import Callable
import logging
import os
import sys
import threading
import time
from typing import Any, BinaryIO

from timebill_ros.engine.engine import Engine
from timebill_ros.executor import garbage, realtime
from timebill_ros.executor.intake import Intake
from timebill_ros.executor.messages import (
    Alive, ChannelClosed, Finished, Load, LoadFailed, ProfileDone, ProfileProgress, read_message,
    RunProfile, Shutdown, Submit)
from timebill_ros.executor.outbox import Outbox, StartReport
from timebill_ros.executor.start import measure, start, Started, StartFailed
from timebill_ros.paths import cache_dir
from timebill_ros.query import Ending, ErrorCode, Outcome, QueryTiming
from timebill_ros.time_estimator.coefficients import FROM_PROFILE
from timebill_ros.time_estimator.profiler import ProfileCanceled

ALIVE_S = 0.5
_LOG = logging.getLogger(__name__)


def serve(reader: BinaryIO, writer: BinaryIO) -> int:
    """Load what the first message says and serve the node; returns the exit status."""
    outbox = Outbox(writer)
    try:
        load = read_message(reader)
        if not isinstance(load, Load):
            raise ValueError(f'the first message is {type(load).__name__}, not Load')
        listener = Listener(reader, outbox)
        report = StartReport(outbox)
        with report.pulse():
            started = start(load, report)
        garbage.settle()
        note = realtime.claim(load.realtime_priority, started.engine.device.type)
        if note:
            _LOG.warning('%s', note)
        model = ModelThread(started, load, outbox)
        listener.take = model.intake.take
        outbox.send(started.ready())
        model.run()
    except StartFailed as error:
        outbox.send(LoadFailed(str(error)))
        return 1
    except ChannelClosed:
        pass
    return 0


class Listener:
    """The talk thread: hands the node's messages to ``take``; ends the process with the pipe."""

    def __init__(self, reader: BinaryIO, outbox: Outbox) -> None:
        """Listen from now on; until ``take`` is replaced the engine starts and takes no query."""
        self.take: Callable[[Any], None] = self._take_at_start
        self._reader = reader
        self._outbox = outbox
        threading.Thread(target=self._listen, name='talk', daemon=True).start()

    def _listen(self) -> None:
        status = 0
        try:
            while True:
                message = read_message(self._reader)
                self.take(message)      # looked up only now: it may have changed meanwhile
        except ChannelClosed:
            pass
        except Exception:       # whatever it is: without this thread the process would be deaf
            _LOG.exception('the engine cannot listen any more')
            status = 1
        # Not sys.exit: the model thread may be deep in a prefill, and nothing here needs saving.
        sys.stderr.flush()
        os._exit(status)

    def _take_at_start(self, message: Any) -> None:
        if isinstance(message, Shutdown):
            os._exit(0)
        if isinstance(message, Submit):
            ending = Ending(
                Outcome.FAILED, error_code=ErrorCode.ENGINE_NOT_READY,
                error_msg='the engine is starting')
            self._outbox.send(
                Finished(message.query.query_id, ending, '', QueryTiming(), last_token_ns=0))


class ModelThread:
    """The work: unit by unit, and a sign of life when there is none."""

    def __init__(self, started: Started, load: Load, outbox: Outbox) -> None:
        """Prepare; ``run`` works."""
        self._engine: Engine = started.engine
        self._load = load
        self._outbox = outbox
        self._busy_s = 0.0
        self._alive_ns = 0
        self.intake = Intake(
            started.engine, outbox, started.planning(), started.coefficients.key,
            started.learning(cache_dir(load.cache_dir)))

    def run(self) -> None:
        """Work until the node wants the process to end; raises ChannelClosed when it is gone."""
        idle = False
        while not self.intake.stopping:
            was_idle, idle = idle, not self._work()
            if idle:
                if not was_idle:
                    garbage.collect()
                profile = self.intake.next_profile()
                if profile is not None:
                    self._profile(profile)
                else:
                    self.intake.wait(ALIVE_S)
            self._alive()
        self.intake.end_all()

    def _work(self) -> bool:
        """Do one unit of work; False = there is none."""
        began_s = time.perf_counter()
        messages = self.intake.work()
        if messages is None:
            return False
        worked_s = time.perf_counter()
        self._busy_s += worked_s - began_s
        self._outbox.send(*messages)
        self.intake.told(time.perf_counter() - worked_s)
        ended = [each for each in messages if isinstance(each, Finished)]
        for each in ended:
            self.intake.learn(each)
        if ended:
            garbage.collect_young()
        return True

    def _alive(self) -> None:
        """Send the gauges, at most twice in ALIVE_S."""
        now_ns = time.monotonic_ns()
        if now_ns - self._alive_ns < ALIVE_S * 0.5e9:
            return
        self._alive_ns = now_ns
        gauges = self.intake.gauges
        self._outbox.send(Alive(
            self._engine.device_memory_bytes, self._busy_s, gauges.waiting, gauges.running))

    def _profile(self, request: RunProfile) -> None:
        def report(progress: ProfileProgress) -> None:
            self._outbox.send(progress)

        coefficients, done = None, ProfileDone(None, '', '')
        try:
            coefficients, path = measure(
                self._engine, self._load, request, report, self.intake.cancel_profile.is_set)
            done = ProfileDone(coefficients.to_dict(), str(path), '')
        except ProfileCanceled:
            done = ProfileDone(None, '', 'canceled', canceled=True)
        except Exception as error:      # a failed profile leaves the last good coefficients
            _LOG.exception('the profile failed')
            done = ProfileDone(None, '', f'the profile failed: {error}')
        self.intake.profiled(coefficients, FROM_PROFILE)
        self._outbox.send(done)
