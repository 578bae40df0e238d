# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""SIGINT and SIGTERM: heard from the start, once for one request, and at last for good."""

import signal
import subprocess
import sys

CHILD = """
import sys, threading, time
from timebill_ros.nodes.signals import StopSignals

asked = threading.Event()
with StopSignals() as signals:
    print('entered', flush=True)
    sys.stdin.readline()          # a node that is being made
    signals.call(asked.set)
    asked.wait(20.0)
    print('asked', flush=True)
    sys.stdin.readline()          # a node that ends
print('left', flush=True)
sys.stdin.readline()
sys.exit(0 if asked.is_set() else 1)
"""


class Child:
    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, '-c', CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)

    def reads(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def goes_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write('\n')
        self.process.stdin.flush()

    def ends(self) -> tuple[int, str]:
        _, errors = self.process.communicate(timeout=20.0)
        return self.process.returncode, errors


def test_a_signal_before_the_node_is_there_and_a_second_of_the_same_request() -> None:
    child = Child()
    assert child.reads() == 'entered'
    child.process.send_signal(signal.SIGINT)
    child.process.send_signal(signal.SIGTERM)
    child.goes_on()
    assert child.reads() == 'asked'
    child.goes_on()
    assert child.reads() == 'left'
    child.process.send_signal(signal.SIGINT)  # too late to matter, and no traceback
    assert child.ends() == (0, '')


def test_who_insists_is_obeyed_at_once() -> None:
    child = Child()
    assert child.reads() == 'entered'
    child.goes_on()
    child.process.send_signal(signal.SIGINT)
    assert child.reads() == 'asked'
    for _ in range(20):
        try:
            child.process.wait(0.5)
            break
        except subprocess.TimeoutExpired:
            child.process.send_signal(signal.SIGTERM)
    assert child.ends() == (128 + signal.SIGTERM, '')
