# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Two interpreters, no sockets in the engine, two servers side by side, and how a server ends.

The second server runs its engine behind a filter of system calls that ends the process at the first
socket, with little memory, on a model whose chat template refuses a word: so its real engine runs
out of memory and refuses a prompt when asked to.
"""

from collections.abc import Iterator
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest
from ros_serving import (
    children_of,
    command_line,
    mapped_files,
    open_sockets,
    running_server,
    Server,
    STORY,
    until,
    WAIT_S,
)

from timebill_ros.executor.engine_command import engine_python
from timebill_ros.paths import cache_dir
from timebill_ros.query import ErrorCode, Outcome

PARIS = 'What is the capital of France?'
REFUSED_WORD = 'xyzzy'
KV_MEMORY_BYTES = 60_000_000

# seccomp: end the process if it calls socket(2), allow everything else. It survives execve.
WITHOUT_SOCKETS = """
import ctypes, os, platform, struct, sys
audit_arch, socket_call = {
    'x86_64': (0xC000003E, 41), 'aarch64': (0xC00000B7, 198)}[platform.machine()]
load_word, jump_if_equal, give = 0x20, 0x15, 0x06
kill_process, allow = 0x80000000, 0x7FFF0000
program = b''.join(struct.pack('HBBI', *each) for each in (
    (load_word, 0, 0, 4), (jump_if_equal, 0, 2, audit_arch),
    (load_word, 0, 0, 0), (jump_if_equal, 1, 0, socket_call),
    (give, 0, 0, allow), (give, 0, 0, kill_process)))
held = ctypes.create_string_buffer(program)
filter = ctypes.create_string_buffer(
    struct.pack('HxxxxxxP', len(program) // 8, ctypes.addressof(held)))
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
installed = libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter, 0, 0)
assert installed == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"""

COMMAND_WITH_SERVER = """
from timebill_ros.cli.server_process import ServerProcess
with ServerProcess([], entry='timebill_ros.experiments.bare_action') as server:
    print(server.process.pid, flush=True)
    server.process.wait()
"""


@pytest.fixture(scope='module')
def confined_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an interpreter for the engine that cannot open a socket and live."""
    folder = tmp_path_factory.mktemp('confined')
    (folder / 'confine.py').write_text(WITHOUT_SOCKETS)
    wrapper = folder / 'python'
    wrapper.write_text(
        f'#!/bin/sh\nexec {sys.executable} -S {folder}/confine.py {engine_python()} "$@"\n'
    )
    wrapper.chmod(0o755)
    return wrapper


@pytest.fixture(scope='module')
def touchy_model(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the embedded model with a chat template that raises for REFUSED_WORD."""
    converted = next((cache_dir() / 'models').glob('SmolLM2-135M-Instruct*/config.json')).parent
    # Of the name that the embedded model has, so that its profile serves again.
    folder = tmp_path_factory.mktemp('touchy') / 'SmolLM2-135M-Instruct'
    folder.mkdir()
    for path in converted.iterdir():
        if path.name != 'chat_template.jinja':
            (folder / path.name).symlink_to(path)
    template = (converted / 'chat_template.jinja').read_text()
    (folder / 'chat_template.jinja').write_text(
        f"{{% if '{REFUSED_WORD}' in messages[-1]['content'] %}}"
        f"{{{{ raise_exception('this word is refused') }}}}{{% endif %}}{template}"
    )
    return folder


@pytest.fixture(scope='module')
def second_server(server: Server, confined_python: Path, touchy_model: Path) -> Iterator[Server]:
    """Give the module a second server, in a namespace of its own."""
    with running_server(
        'second',
        engine_python=str(confined_python),
        model=str(touchy_model),
        kv_memory_bytes=KV_MEMORY_BYTES,
    ) as running:
        yield running


def test_the_node_has_no_torch_and_the_engine_no_rclpy(server: Server) -> None:
    node, engine = mapped_files(server.node_pid), mapped_files(server.engine_pid)
    assert any('rclpy' in path for path in node) and any('libtorch' in path for path in engine)
    assert not [path for path in node if 'torch' in path or 'transformers' in path]
    assert not [path for path in engine if 'rclpy' in path or 'librcl' in path or 'librmw' in path]
    numpy_of = [{path for path in mapped if 'numpy' in path} for mapped in (node, engine)]
    assert all(numpy_of) and not numpy_of[0] & numpy_of[1]


def test_the_engine_holds_no_socket(server: Server) -> None:
    assert open_sockets(server.node_pid)
    assert not open_sockets(server.engine_pid)


def test_the_filter_of_sockets_does_filter(confined_python: Path) -> None:
    opened = subprocess.run(
        [str(confined_python), '-c', 'import socket; socket.socket()'], check=False
    )
    assert opened.returncode == -signal.SIGSYS
    assert (
        subprocess.run([str(confined_python), '-c', 'print("fine")'], check=False).returncode == 0
    )


def test_an_engine_that_cannot_open_sockets_answers(second_server: Server) -> None:
    status = Path(f'/proc/{second_server.engine_pid}/status').read_text()
    assert 'Seccomp:\t2' in status
    assert 'Paris' in second_server.client.ask(PARIS, within=WAIT_S).response


def test_two_servers_answer_side_by_side(server: Server, second_server: Server) -> None:
    pending = [each.client.ask_async(PARIS, within=WAIT_S) for each in (server, second_server)]
    answers = [each.result(WAIT_S) for each in pending]
    assert all('Paris' in answer.response for answer in answers)
    for each, answer in zip((server, second_server), answers):
        assert answer.message is not None
        each.watcher.timing_of(bytes(answer.message.goal_id.uuid.tolist()))
    mine = {bytes(each.goal_id.uuid.tolist()) for each in server.watcher.timings}
    others = {bytes(each.goal_id.uuid.tolist()) for each in second_server.watcher.timings}
    assert mine and others and not mine & others


def test_too_little_memory_is_an_error_that_says_how_much(second_server: Server) -> None:
    answer = second_server.client.ask('word ' * 2000, within=WAIT_S)
    assert (answer.outcome, answer.error_code) == (Outcome.FAILED, ErrorCode.OUT_OF_MEMORY)
    assert any(character.isdigit() for character in answer.error_msg)


def test_a_prompt_that_the_chat_template_refuses_is_invalid_and_disturbs_nothing(
    second_server: Server,
) -> None:
    running = second_server.ask_and_wait_for_text(max_new_tokens=20)
    answer = second_server.client.ask(f'Say {REFUSED_WORD}.', within=WAIT_S)
    assert (answer.outcome, answer.error_code) == (Outcome.INVALID, ErrorCode.INVALID_PROMPT)
    assert answer.error_msg.startswith('prompt') and 'this word is refused' in answer.error_msg
    assert running.result(WAIT_S).outcome == Outcome.COMPLETED


def test_a_server_that_is_stopped_ends_its_queries_first(second_server: Server) -> None:
    engine = second_server.engine_pid
    running = second_server.ask_and_wait_for_text()
    waiting = second_server.client.ask_async(STORY, within=WAIT_S)
    time.sleep(0.1)
    os.kill(second_server.node_pid, signal.SIGTERM)
    for pending in (running, waiting):
        answer = pending.result(WAIT_S)
        assert (answer.outcome, answer.error_code) == (Outcome.FAILED, ErrorCode.SERVER_SHUTDOWN)
        assert answer.error_msg
    assert second_server.process.process.wait(WAIT_S) == 0
    until(lambda: command_line(engine) == '')


def test_an_engine_does_not_outlive_its_node(server: Server) -> None:
    engine = server.engine_pid
    assert engine in children_of(server.node_pid)
    os.kill(engine, signal.SIGSTOP)  # it cannot even see that its pipe has ended
    os.kill(server.node_pid, signal.SIGKILL)
    until(lambda: _state(engine) == 'Z')


def test_a_server_that_a_command_runs_does_not_outlive_it(ros_domain: int) -> None:
    with subprocess.Popen(
        [sys.executable, '-c', COMMAND_WITH_SERVER], cwd='/', stdout=subprocess.PIPE, text=True
    ) as command:
        assert command.stdout is not None
        server = int(command.stdout.readline())
        until(lambda: any('rclpy' in path for path in mapped_files(server)))
        command.kill()
    until(lambda: _state(server) == 'Z')


def _state(pid: int) -> str:
    """Return the state letter of a process; a dead one that nobody reaped, or none, is Z."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rsplit(')', 1)[1].split()[0]
    except OSError:
        return 'Z'
