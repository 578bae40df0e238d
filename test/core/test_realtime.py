# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Real-time scheduling is taken where it may be had, and missing it is only told."""

import os
import threading

import pytest

from timebill_ros.executor.realtime import claim


def in_a_thread(priority: int, device: str) -> tuple[str, int]:
    """Return what ``claim`` said and the policy of its thread afterwards."""
    result = []
    thread = threading.Thread(
        target=lambda: result.append((claim(priority, device), os.sched_getscheduler(0))))
    thread.start()
    thread.join()
    return result[0]


def test_it_is_off_by_default_and_on_a_cpu() -> None:
    assert in_a_thread(0, 'cuda') == ('', os.SCHED_OTHER)
    note, policy = in_a_thread(50, 'cpu')
    assert '50 ms of each second' in note and policy == os.SCHED_OTHER


def test_it_is_taken_or_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    note, policy = in_a_thread(1, 'cuda')
    assert policy == (os.SCHED_OTHER if note else os.SCHED_FIFO)

    def refuse(*_: object) -> None:
        raise PermissionError(1, 'Operation not permitted')

    monkeypatch.setattr(os, 'sched_setscheduler', refuse)
    assert 'CAP_SYS_NICE' in in_a_thread(1, 'cuda')[0]
