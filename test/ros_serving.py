# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Servers in processes of their own, and what the tests see of them over DDS and in /proc."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import json
import os
from pathlib import Path
import queue
import shutil
import threading
import time
from typing import Any
import uuid

from linked_cache import linked_cache
import rclpy
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from timebill_ros.action import Query as QueryAction
from timebill_ros.cli.server_process import ServerProcess
from timebill_ros.client import PendingAnswer, TimeBillClient
from timebill_ros.msg import ExecutorStatus
from timebill_ros.msg import QueryTiming as QueryTimingMsg
from timebill_ros.nodes import qos
from timebill_ros.nodes.event_inbox import EventInbox
from timebill_ros.nodes.guarded import spin_while
from timebill_ros.paths import cache_dir
from timebill_ros.query import Outcome

# A start includes, once per version of the engine, a conversion and a profile.
START_S = 240.0
WAIT_S = 60.0
STORY = 'Tell me a very long story about a robot and a lighthouse, with many details.'
STORY_TOKENS = 512          # of the story, at the least: the cap `n_max` ends it

_profiled = False  # a server of this session has left its profile in the user's cache


class Watcher:
    """A node of the tests that keeps everything a server publishes."""

    def __init__(self, namespace: str = '') -> None:
        """Subscribe, and spin in a thread."""
        self.timings: list[QueryTimingMsg] = []
        self.statuses: list[ExecutorStatus] = []
        self.context = rclpy.Context()
        rclpy.init(args=[], context=self.context, signal_handler_options=SignalHandlerOptions.NO)
        self.node = Node(
            f'watcher_{uuid.uuid4().hex[:8]}',
            context=self.context,
            namespace=namespace,
            enable_rosout=False,
            start_parameter_services=False,
        )
        self.node.create_subscription(
            QueryTimingMsg, qos.TIMING_TOPIC, self.timings.append, qos.timing_qos()
        )
        self.node.create_subscription(
            ExecutorStatus, qos.STATUS_TOPIC, self.statuses.append, qos.status_qos()
        )
        self.raw = ActionClient(self.node, QueryAction, qos.ACTION_NAME, **qos.service_qos())
        self._calls = EventInbox(self.node, lambda call: call())
        self._open = True
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def timing_of(self, goal_id: bytes) -> QueryTimingMsg:
        """Return the timing message of a goal; waits for it."""
        until(lambda: any(bytes(each.goal_id.uuid.tolist()) == goal_id for each in self.timings))
        return next(each for each in self.timings if bytes(each.goal_id.uuid.tolist()) == goal_id)

    def send(self, **fields: Any) -> QueryAction.Result:
        """Send a goal as it is, without our client library, and return its result."""
        goal = QueryAction.Goal(**fields)
        assert self.raw.wait_for_server(WAIT_S)
        handle = finished(self._call(lambda: self.raw.send_goal_async(goal)))
        assert handle.accepted
        return finished(self._call(handle.get_result_async)).result

    def _call(self, call: Callable[[], Any]) -> Any:
        """Call in the thread that spins; elsewhere rclpy may see a reply before it knows of it."""
        answered: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.post(lambda: answered.put(call()))
        return answered.get(timeout=WAIT_S)

    def close(self) -> None:
        """End it."""
        self._open = False
        self._thread.join(WAIT_S)
        rclpy.try_shutdown(context=self.context)

    def _spin(self) -> None:
        spin_while(self._executor, self.node.get_logger(), lambda: self._open, 0.1)
        self._executor.shutdown()
        self.raw.destroy()
        self.node.destroy_node()


class Server:
    """A running server, a client of it, and a watcher."""

    def __init__(self, process: ServerProcess, namespace: str) -> None:
        """Connect; returns once the server is ready."""
        self.process = process
        self.namespace = namespace
        self.client = TimeBillClient(namespace=namespace, late_wait_s=0.5)
        self.watcher = Watcher(namespace)
        try:
            self.wait_until_ready()
        except AssertionError:
            self.close()
            raise

    def wait_until_ready(self) -> None:
        """Wait until it answers a query."""
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s and self.process.is_running:
            if self.client.wait_for_server(1.0):
                if (
                    self.client.ask('Hi', within=WAIT_S, max_new_tokens=1).outcome
                    == Outcome.COMPLETED
                ):
                    return
                time.sleep(0.2)
            if sum('ended while starting' in line for line in self.process.log) > 1:
                break
        raise AssertionError('the server did not get ready:\n' + '\n'.join(self.process.log))

    @property
    def node_pid(self) -> int:
        """Process id of the node."""
        return self.process.process.pid

    @property
    def engine_pid(self) -> int:
        """Process id of the engine; waits for one."""
        until(lambda: self._engine_pids() != [])
        return self._engine_pids()[0]

    def _engine_pids(self) -> list[int]:
        return [pid for pid in children_of(self.node_pid) if 'engine_main' in command_line(pid)]

    def time_for_tokens(self, count: int) -> float:
        """
        Return the seconds that so many tokens of the story take on this machine in no hurry.

        A budget of it for the whole story (`STORY_TOKENS`) is too short on any machine.
        """
        assert 2 * count < STORY_TOKENS
        answer = self.client.ask(STORY, within=WAIT_S, max_new_tokens=count)
        assert answer.timing.n_generated == count, answer.error_msg
        return answer.timing.total + answer.timing.delivery_margin

    def ask_and_wait_for_text(
        self, prompt: str = STORY, within: float = WAIT_S, **fields: Any
    ) -> PendingAnswer:
        """Ask, and return once the response has begun."""
        begun = threading.Event()

        def note(feedback: QueryAction.Feedback) -> None:
            if feedback.stage == QueryAction.Feedback.STAGE_DECODE:
                begun.set()

        pending = self.client.ask_async(prompt, within=within, on_feedback=note, **fields)
        assert begun.wait(WAIT_S)
        return pending

    def close(self) -> None:
        """Disconnect."""
        self.client.close()
        self.watcher.close()


@contextmanager
def running_server(namespace: str, *arguments: str, **parameters: Any) -> Iterator[Server]:
    """Run a server without its calibration node, with these parameters, until the context ends."""
    global _profiled
    given = ['--namespace', namespace, '--no-calibration', *arguments]
    for name, value in parameters.items():
        given += ['--param', f'{name}:={json.dumps(value)}']
    with ServerProcess(given) as process:
        server = Server(process, namespace)
        _profiled = _profiled or 'cache_dir' not in parameters
        try:
            yield server
        finally:
            server.close()


def ensure_profile() -> None:
    """Have a server leave its profile in the user's cache, unless one of this session has."""
    if not _profiled:
        with running_server('measured'):
            pass


def hopeful_cache(folder: Path) -> Path:
    """
    Return a cache directory whose profile calls this machine far faster than it is.

    With it every query is begun, and runs into its deadline in the middle of the work.
    """
    linked_cache(folder)
    shutil.copytree(cache_dir() / 'profiles', folder / 'profiles')
    for path in (folder / 'profiles').glob('*.json'):
        profile = json.loads(path.read_text())
        if 'coefficients' not in profile:       # of quality
            continue
        for law in profile['coefficients']['laws']:
            law['coefficients'] = [value * 1e-4 for value in law['coefficients']]
        path.write_text(json.dumps(profile))
    return folder


def finished(future: Any, timeout_s: float = WAIT_S) -> Any:
    """Return the result of an rclpy future that another thread completes."""
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(timeout_s)
    return future.result()


def until(condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
    """Wait until a condition holds; fails if it does not come to that."""
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, 'it never happened'
        time.sleep(0.01)


def children_of(pid: int) -> list[int]:
    """Return the process ids of the children of a process."""
    found = []
    for task in Path(f'/proc/{pid}/task').iterdir():
        found += [int(child) for child in (task / 'children').read_text().split()]
    return found


def command_line(pid: int) -> str:
    """Return the command line of a process; '' if it is gone."""
    try:
        return Path(f'/proc/{pid}/cmdline').read_bytes().replace(b'\0', b' ').decode()
    except OSError:
        return ''


def mapped_files(pid: int) -> set[str]:
    """Return the files that a process has mapped into its memory: its libraries."""
    lines = Path(f'/proc/{pid}/maps').read_text().splitlines()
    return {line.split(maxsplit=5)[5] for line in lines if len(line.split(maxsplit=5)) == 6}


def open_sockets(pid: int) -> list[str]:
    """Return the sockets that a process holds."""
    found = []
    for descriptor in Path(f'/proc/{pid}/fd').iterdir():
        try:
            target = os.readlink(descriptor)
        except OSError:
            continue
        if target.startswith('socket:'):
            found.append(target)
    return found
