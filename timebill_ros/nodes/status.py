# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The state of the executor, as ``timebill/status`` tells it once a second."""

from collections import deque
from math import nan
import resource
import time

from timebill_ros.executor.messages import Alive
from timebill_ros.executor.supervisor import Supervisor
from timebill_ros.msg import ExecutorStatus
from timebill_ros.nodes.conversions import time_msg
from timebill_ros.nodes.goal_record import GoalBook
from timebill_ros.query import Outcome

WINDOW_S = 60.0


class StatusReport:
    """Gathers over a sliding window what the status message needs; one thread uses it."""

    def __init__(self) -> None:
        """Start with nothing seen."""
        self._ended: deque[tuple[float, bool]] = deque()  # (when, was it a miss)
        self._busy: deque[tuple[float, float]] = (
            deque()
        )  # (when, engine's seconds of work since its start)
        self._device_memory_bytes = 0
        self._factor = nan  # k of the newest query: it may be learned

    def query_ended(self, outcome: Outcome, factor: float) -> None:
        """Count a query that has ended; ``factor`` is the k it was planned with, or NaN."""
        if factor == factor:
            self._factor = factor
        self._ended.append((time.monotonic(), outcome == Outcome.DEADLINE_MISSED))

    def engine_alive(self, message: Alive) -> None:
        """Take in the engine's gauges."""
        self._busy.append((time.monotonic(), message.busy_s))
        self._device_memory_bytes = message.device_memory_bytes

    def engine_lost(self) -> None:
        """Forget the gauges of an engine process that is gone."""
        self._busy.clear()
        self._device_memory_bytes = 0

    def message(
        self, supervisor: Supervisor, book: GoalBook, queue_limit: int, factor: float
    ) -> ExecutorStatus:
        """Return the status as of now; ``factor`` is the k of the first query."""
        self._forget_old()
        misses = [missed for _, missed in self._ended]
        return ExecutorStatus(
            stamp=time_msg(time.time_ns()),
            engine_state=int(supervisor.state),
            engine_message=supervisor.message,
            engine_restarts=supervisor.restarts,
            queue_depth=book.waiting(),
            queue_limit=queue_limit,
            running=book.running(),
            busy_ratio=self._busy_ratio(),
            miss_ratio=sum(misses) / len(misses) if misses else nan,
            window_s=WINDOW_S,
            pessimistic_factor=factor if self._factor != self._factor else self._factor,
            node_memory_bytes=resident_bytes('self'),
            engine_memory_bytes=resident_bytes(str(supervisor.pid)) if supervisor.pid else 0,
            device_memory_bytes=self._device_memory_bytes,
        )

    def _forget_old(self) -> None:
        oldest = time.monotonic() - WINDOW_S
        for samples in (self._ended, self._busy):
            while samples and samples[0][0] < oldest:
                samples.popleft()

    def _busy_ratio(self) -> float:
        if len(self._busy) < 2:
            return 0.0
        (first_s, first_busy_s), (last_s, last_busy_s) = self._busy[0], self._busy[-1]
        return max(0.0, min((last_busy_s - first_busy_s) / max(last_s - first_s, 1e-9), 1.0))


def resident_bytes(process: str) -> int:
    """Return the resident memory of a process ("self" or its id) from /proc; 0 if it is gone."""
    try:
        with open(f'/proc/{process}/statm', encoding='ascii') as statm:
            return int(statm.read().split()[1]) * resource.getpagesize()
    except OSError:
        return 0
