# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
``timebill bench node``: what the node adds to the model's own work.

Overhead in: from the client's call to the first engine work. Overhead out: from the last token in
the engine to the result at the client. Both cross processes, so they are put together from the
steady clock inside each process and, between processes, the system clock that all share. Beside
them the peer of the same run: a goal to an action server as rclpy comes, which ends it at once.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
import os
from pathlib import Path
import shlex
import subprocess
import sys
import tempfile
import time
from typing import Any

from timebill_ros.cli.server_process import python_command, ServerProcess
from timebill_ros.client import TimeBillClient
from timebill_ros.experiments import node_report
from timebill_ros.experiments.report_file import deliver
from timebill_ros.nodes.conversions import time_ns

PROMPT = 'Name a colour.'
CAP_TOKENS = 4
WITHIN_S = 30.0
START_TIMEOUT_S = 600.0
TOPICS = 20
RATE_HZ = 100.0
WARM_UP = 3
LOAD_MODULE = 'timebill_ros.experiments.topic_load'
BARE_MODULE = 'timebill_ros.experiments.bare_action'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument('--queries', type=int, default=200, help='queries per case (default 200)')
    parser.add_argument('--starts', type=int, default=3, help='warm starts (default 3)')
    parser.add_argument('--cold', action='store_true', help='time a cold start too (minutes)')
    parser.add_argument('--device', default='auto', help='as for "timebill serve"')


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print a table or one JSON object."""
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    report: dict[str, Any] = {
        'date': time.strftime('%Y-%m-%d'),
        'command': shlex.join(['timebill', *sys.argv[1:]]),
        'cores': os.cpu_count(),
        'warm_start_s': [start_up_s(arguments.device) for _ in range(arguments.starts)],
    }
    if arguments.cold:
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, 'TIMEBILL_CACHE_DIR': cache}
            report['cold_start_s'] = start_up_s(arguments.device, environment)
    report['bare_ms'] = bare_round_trip_ms(arguments.queries)
    report['idle'] = measure(arguments.device, arguments.queries, topics=0)
    report['busy'] = measure(arguments.device, arguments.queries, topics=TOPICS)
    deliver(report, arguments, node_report.table)
    return 0


def start_up_s(device: str, environment: dict[str, str] | None = None) -> float:
    """Return the seconds from the start of the process to the first moment a query is taken."""
    namespace = f'bench_{os.getpid()}'
    with TimeBillClient(namespace=namespace) as client:
        started_s = time.monotonic()
        with ServerProcess(_serve(device, namespace), environment):
            if not client.wait_for_server(START_TIMEOUT_S):
                raise RuntimeError('the server did not start')
            return time.monotonic() - started_s


def measure(device: str, queries: int, topics: int) -> dict[str, Any]:
    """Return overheads in milliseconds and memory in MiB, with this many topics in the process."""
    namespace = f'bench_{os.getpid()}_{topics}'
    with (
        TimeBillClient(namespace=namespace) as client,
        _server(device, namespace, topics) as server,
    ):
        if not client.wait_for_server(START_TIMEOUT_S):
            raise RuntimeError('the server did not start')
        samples = [overheads_ms(client) for _ in range(WARM_UP + queries)][WARM_UP:]
        memory = memory_mib(server.process.pid)
        timing = ask(client)
    return {
        'model': timing.model,
        'device': timing.device,
        'topics': topics,
        'rate_hz': RATE_HZ,
        'queries': len(samples),
        'in_ms': quantiles([sample[0] for sample in samples]),
        'out_ms': quantiles([sample[1] for sample in samples]),
        'sum_ms': quantiles([sum(sample) for sample in samples]),
        **memory,
    }


def bare_round_trip_ms(queries: int) -> dict[str, float]:
    """Return the time from a call to its result with a bare action server, in milliseconds."""
    namespace = f'bench_{os.getpid()}_bare'
    arguments = ['--ros-args', '-r', f'__ns:=/{namespace}']
    with (
        TimeBillClient(namespace=namespace) as client,
        ServerProcess(arguments, entry=BARE_MODULE),
    ):
        if not client.wait_for_server(START_TIMEOUT_S):
            raise RuntimeError('the bare server did not start')
        asked = [client.ask(PROMPT, within=WITHIN_S) for _ in range(WARM_UP + queries)]
    return quantiles([answer.elapsed_s * 1e3 for answer in asked[WARM_UP:]])


def overheads_ms(client: TimeBillClient) -> tuple[float, float]:
    """Ask one question; return the overhead in and out, in milliseconds."""
    sent_ns = time.time_ns()
    timing = ask(client)
    received_ns = time.time_ns()
    way_in_ns = time_ns(timing.arrived) - sent_ns
    way_out_ns = received_ns - time_ns(timing.stamp)
    return (
        way_in_ns * 1e-6 + timing.queued * 1e3,
        way_out_ns * 1e-6 + timing.last_token_to_result * 1e3,
    )


def ask(client: TimeBillClient) -> Any:
    """Ask the question; return its QueryTiming; raises RuntimeError unless it was answered."""
    answer = client.ask(PROMPT, within=WITHIN_S, max_new_tokens=CAP_TOKENS)
    if not answer.ok or answer.message is None:
        raise RuntimeError(f'a query ended {answer.outcome.name}: {answer.error_msg}')
    return answer.message


def quantiles(values: list[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum."""
    ranked = sorted(values)
    return {
        'p50': round(ranked[len(ranked) // 2], 3),
        'p99': round(ranked[min(len(ranked) - 1, int(0.99 * len(ranked)))], 3),
        'max': round(ranked[-1], 3),
    }


def memory_mib(node_pid: int) -> dict[str, float]:
    """Return the resident memory of the node process and of its child, the engine process."""
    tasks = Path(f'/proc/{node_pid}/task').iterdir()
    children = [child for task in tasks for child in (task / 'children').read_text().split()]
    return {
        'node_mib': _resident_mib(node_pid),
        'engine_mib': sum(_resident_mib(int(child)) for child in children),
    }


def _resident_mib(pid: int) -> float:
    pages = int(Path(f'/proc/{pid}/statm').read_text().split()[1])
    return round(pages * os.sysconf('SC_PAGE_SIZE') / 2**20, 1)


def _serve(device: str, namespace: str) -> list[str]:
    return ['--device', device, '--namespace', namespace]


@contextmanager
def _server(device: str, namespace: str, topics: int) -> Iterator[ServerProcess]:
    """Run a server, and for ``topics`` > 0 a process that publishes to its process."""
    if not topics:
        with ServerProcess(_serve(device, namespace)) as server:
            yield server
        return
    load = [str(topics), str(RATE_HZ), '--ros-args', '-r', f'__ns:=/{namespace}']
    command = ['serve', *load, '-p', f'device:="{device}"']
    publisher = subprocess.Popen(python_command(LOAD_MODULE, ['publish', *load]))
    try:
        with ServerProcess(command, entry=LOAD_MODULE) as server:
            yield server
    finally:
        publisher.kill()
        publisher.wait()
