# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The supervisor against child processes that serve, die, hang, talk nonsense or never start."""

from collections.abc import Callable, Iterator
import os
from pathlib import Path
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

from timebill_ros.executor import supervisor as supervisor_module
from timebill_ros.executor.engine_command import engine_argv, engine_environment, engine_python
from timebill_ros.executor.messages import (
    Drop,
    Finished,
    Load,
    LoadFailed,
    Loading,
    read_message,
    Ready,
)
from timebill_ros.executor.supervisor import (
    EngineLine,
    EngineLost,
    EngineSaid,
    EngineState,
    Limits,
    Supervisor,
)
from timebill_ros.query import ErrorCode

SOURCE_DIR = Path(supervisor_module.__file__).resolve().parents[2]
WAIT_S = 20.0

# What every child knows: the pipes, and how to say that it is ready.
PRELUDE = f"""
import os, signal, sys, time
sys.path.insert(0, {str(SOURCE_DIR)!r})
from timebill_ros.executor.messages import *
from timebill_ros.query import Ending, Outcome, QueryTiming
reader, writer = os.fdopen(int(sys.argv[1]), 'rb'), os.fdopen(int(sys.argv[2]), 'wb')
load = read_message(reader)
def say(message): write_message(writer, message)
def ready():
    say(Ready(ModelInfo('m', 'k', 'llama', 'cpu', 'float32', [], 1, 1, 1, 1, 1, 1, 1, 1, {{}}, '0'),
              {{}}, 'file', 0.0, 0.0))
def serve():
    while True:
        message = read_message(reader)
        if isinstance(message, Shutdown):
            sys.exit(0)
        say(Finished(message.query_id, Ending(Outcome.COMPLETED), '', QueryTiming(), 0))
"""


class Watched:
    """A supervisor over a child script, and the events that it posted."""

    def __init__(self, script: str, limits: Limits, python: str = sys.executable) -> None:
        """Start."""
        self.events: queue.Queue[Any] = queue.Queue()
        self.supervisor = Supervisor(
            lambda read_fd, write_fd: [python, '-c', PRELUDE + script, str(read_fd), str(write_fd)],
            os.environ,
            Load(model='the model'),
            self.events.put,
            limits,
        )
        self.supervisor.start()

    def wait_for(self, kind: type, message: type | None = None) -> Any:
        """Return the next event of this kind (holding this message); fails after WAIT_S."""
        end_s = time.monotonic() + WAIT_S
        while True:
            event = self.events.get(timeout=max(0.0, end_s - time.monotonic()))
            if isinstance(event, kind) and (message is None or isinstance(event.message, message)):
                return event


Watch = Callable[..., Watched]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    monkeypatch.setattr(supervisor_module, 'FIRST_BACKOFF_S', 0.05)
    started = []

    def start(
        script: str, timeout_s: float = 30.0, start_timeout_s: float = 30.0, **more: Any
    ) -> Watched:
        started.append(Watched(script, Limits(timeout_s, start_timeout_s), **more))
        return started[-1]

    yield start
    for each in started:
        each.supervisor.stop()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_messages_go_in_and_come_out(watch: Watch) -> None:
    watched = watch('print(load.model); ready(); serve()')
    event = watched.wait_for(EngineSaid, Ready)
    assert event.generation == 1
    assert watched.supervisor.state == EngineState.READY
    watched.supervisor.send(1, Drop('abc'))
    assert watched.wait_for(EngineSaid, Finished).message.query_id == 'abc'


def test_its_output_becomes_lines(watch: Watch) -> None:
    watched = watch('print(load.model); print("trouble", file=sys.stderr); ready(); serve()')
    assert {watched.wait_for(EngineLine).text for _ in range(2)} == {'the model', 'trouble'}


def test_a_message_for_an_earlier_process_is_not_sent_to_its_successor(watch: Watch) -> None:
    watched = watch('ready(); serve()')
    watched.wait_for(EngineSaid, Ready)
    os.kill(watched.supervisor.pid, signal.SIGKILL)
    watched.wait_for(EngineSaid, Ready)
    watched.supervisor.send(1, Drop('old'))
    watched.supervisor.send(2, Drop('new'))
    assert watched.wait_for(EngineSaid, Finished).message.query_id == 'new'


def test_a_killed_engine_is_lost_and_replaced(watch: Watch) -> None:
    watched = watch('ready(); serve()')
    watched.wait_for(EngineSaid, Ready)
    os.kill(watched.supervisor.pid, signal.SIGKILL)
    lost = watched.wait_for(EngineLost)
    assert (lost.generation, lost.error_code) == (1, ErrorCode.ENGINE_DIED)
    assert 'SIGKILL' in lost.error_msg
    assert watched.wait_for(EngineSaid, Ready).generation == 2
    assert watched.supervisor.restarts == 1


def test_an_engine_ended_by_a_signal_without_a_name_is_replaced(watch: Watch) -> None:
    watched = watch('ready(); serve()')
    watched.wait_for(EngineSaid, Ready)
    number = signal.SIGRTMIN + 6
    os.kill(watched.supervisor.pid, number)
    assert f'signal {number}' in watched.wait_for(EngineLost).error_msg
    assert watched.wait_for(EngineSaid, Ready).generation == 2


def test_the_watch_survives_what_nobody_thought_of(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Odd(supervisor_module.EngineProcess):
        @property
        def exit_text(self) -> str:
            raise LookupError('an odd end')

    monkeypatch.setattr(supervisor_module, 'EngineProcess', Odd)
    watched = watch('ready(); serve()')
    watched.wait_for(EngineSaid, Ready)
    os.kill(watched.supervisor.pid, signal.SIGKILL)
    assert 'an odd end' in watched.wait_for(EngineLost).error_msg
    assert watched.wait_for(EngineSaid, Ready).generation == 2


def test_where_no_more_threads_are_granted_the_start_fails_and_is_tried_again(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    class Thread(threading.Thread):
        def start(self) -> None:
            started.append(1)
            if len(started) == 3:   # the supervisor's own, the first of the process, this one
                raise RuntimeError("can't start new thread")
            super().start()

    monkeypatch.setattr(threading, 'Thread', Thread)
    watched = watch('ready(); serve()')
    assert "can't start new thread" in watched.wait_for(EngineLost).error_msg
    assert watched.wait_for(EngineSaid, Ready).generation == 2


def test_a_silent_engine_is_hung_killed_and_replaced(watch: Watch) -> None:
    watched = watch('ready(); serve()', timeout_s=0.5)
    watched.wait_for(EngineSaid, Ready)
    pid = watched.supervisor.pid
    lost = watched.wait_for(EngineLost)
    assert lost.error_code == ErrorCode.ENGINE_HUNG
    assert 'engine_timeout_s = 0.5' in lost.error_msg
    assert not is_alive(pid)
    assert watched.wait_for(EngineSaid, Ready).generation == 2


def test_a_stopped_engine_never_blocks_the_sender(watch: Watch) -> None:
    watched = watch('ready(); os.kill(os.getpid(), signal.SIGSTOP)', timeout_s=0.5)
    watched.wait_for(EngineSaid, Ready)
    before_s = time.monotonic()
    for _ in range(100):
        watched.supervisor.send(1, Drop('x' * 100_000))
    assert time.monotonic() - before_s < 0.4
    assert watched.wait_for(EngineLost).error_code == ErrorCode.ENGINE_HUNG


def test_messages_keep_their_order_whether_they_are_long_or_short(watch: Watch) -> None:
    watched = watch('ready(); serve()')
    watched.wait_for(EngineSaid, Ready)
    # Short ones are written by the sender, long ones and what comes behind them by a thread.
    sent = [f'{number}' + 'x' * (200_000 if number % 7 == 3 else 5) for number in range(60)]
    for query_id in sent:
        watched.supervisor.send(1, Drop(query_id))
    heard = [watched.wait_for(EngineSaid, Finished).message.query_id for _ in sent]
    assert heard == sent


def test_an_engine_that_reports_is_not_hung(watch: Watch) -> None:
    watched = watch('ready()\nwhile True: say(Alive()); time.sleep(0.1)', timeout_s=0.5)
    watched.wait_for(EngineSaid, Ready)
    time.sleep(1.5)
    assert watched.supervisor.state == EngineState.READY
    assert watched.supervisor.restarts == 0


def test_a_start_has_a_limit_of_its_own(watch: Watch) -> None:
    watched = watch('say(Loading("weights", 0.1)); time.sleep(60)', 0.1, start_timeout_s=2.5)
    watched.wait_for(EngineSaid, Loading)
    lost = watched.wait_for(EngineLost)
    assert lost.error_code == ErrorCode.ENGINE_NOT_READY
    assert 'engine_start_timeout_s = 2.5' in lost.error_msg
    assert watched.supervisor.state == EngineState.FAILED


def test_a_failed_load_says_why_and_is_tried_again_ever_later(watch: Watch) -> None:
    watched = watch('say(LoadFailed("no such model; fetch it with: this"))')
    losses = [watched.wait_for(EngineLost) for _ in range(3)]
    assert all(lost.error_msg == 'no such model; fetch it with: this' for lost in losses)
    assert losses[0].retry_s < losses[1].retry_s < losses[2].retry_s
    assert watched.supervisor.state == EngineState.FAILED
    assert watched.supervisor.message == losses[0].error_msg


def test_nonsense_on_the_pipe_ends_the_process(watch: Watch) -> None:
    watched = watch('ready(); writer.write(b"\\4\\0\\0\\0oops"); writer.flush(); serve()')
    lost = watched.wait_for(EngineLost)
    assert lost.error_code == ErrorCode.ENGINE_DIED
    assert 'bad frame' in lost.error_msg


def test_an_interpreter_that_does_not_exist_is_a_failed_start(watch: Watch) -> None:
    watched = watch('', python='/no/such/python')
    assert '/no/such/python' in watched.wait_for(EngineLost).error_msg
    assert watched.supervisor.state == EngineState.FAILED


def test_stopping_ends_the_engine_and_what_it_started(watch: Watch) -> None:
    watched = watch(
        'import subprocess\n'
        'child = subprocess.Popen(["sleep", "60"])\n'
        'print(child.pid, flush=True); ready(); time.sleep(60)'
    )
    grandchild = int(watched.wait_for(EngineLine).text)
    pid = watched.supervisor.pid
    watched.supervisor.stop()
    assert not is_alive(pid)
    _until(lambda: not is_alive(grandchild) or _is_zombie(grandchild))


def test_an_engine_asked_to_shut_down_ends_by_itself(watch: Watch, tmp_path: Path) -> None:
    watched = watch(
        f'import atexit; atexit.register(open({str(tmp_path / "ended")!r}, "w").close)\n'
        'ready(); serve()'
    )
    watched.wait_for(EngineSaid, Ready)
    watched.supervisor.stop()
    assert (tmp_path / 'ended').exists()


def test_the_engines_environment_has_nothing_of_the_nodes_interpreter() -> None:
    kept = engine_environment(
        {
            'PATH': '/bin',
            'OMP_NUM_THREADS': '2',
            'PYTHONPATH': '/opt/ros/x',
            'AMENT_PREFIX_PATH': '/opt/ros/x',
            'COLCON_PREFIX_PATH': '/ws/install',
            '_ROS_WHEELS_BOOTSTRAP_COMPLETE': '1',
            'LD_LIBRARY_PATH': '/opt/ros/x/lib:/usr/local/cuda/lib64:/ws/install/p/lib',
        }
    )
    assert kept['PATH'] == '/bin' and kept['OMP_NUM_THREADS'] == '2'
    assert kept['LD_LIBRARY_PATH'] == '/usr/local/cuda/lib64'
    assert not {
        'PYTHONPATH',
        'AMENT_PREFIX_PATH',
        'COLCON_PREFIX_PATH',
        '_ROS_WHEELS_BOOTSTRAP_COMPLETE',
    } & set(kept)


def test_the_interpreter_is_chosen_in_the_documented_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv('TIMEBILL_ENGINE_PYTHON', raising=False)
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path))
    assert engine_python() == sys.executable
    own = tmp_path / 'timebill_ros/engine/bin/python'
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    assert engine_python() == str(own)
    monkeypatch.setenv('TIMEBILL_ENGINE_PYTHON', '/bin/sh')
    assert engine_python() == '/bin/sh'
    assert engine_python('/bin/cat') == '/bin/cat'
    with pytest.raises(FileNotFoundError, match='setup-engine'):
        engine_python('/no/such/python')


def _is_zombie(pid: int) -> bool:
    shown = subprocess.run(
        ['ps', '-o', 'stat=', '-p', str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout.startswith('Z')


def _until(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_an_interpreter_without_the_engines_libraries_says_what_would_mend_it() -> None:
    from_node, to_engine = os.pipe()
    from_engine, to_node = os.pipe()
    # -S: without site-packages there is no torch.
    bare = [sys.executable, '-S', *engine_argv('', from_node, to_node)[1:]]
    done = subprocess.run(bare, pass_fds=(from_node, to_node), timeout=60)
    os.close(to_node)
    with open(from_engine, 'rb') as stream:
        message = read_message(stream)
    for end in (from_node, to_engine):
        os.close(end)
    assert done.returncode == 1
    assert isinstance(message, LoadFailed)
    assert sys.executable in message.error_msg and 'setup-engine' in message.error_msg
