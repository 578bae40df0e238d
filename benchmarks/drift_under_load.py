# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
What a machine that gets slower, and fast again, does to the estimates, and how tracking mends it.

A server of its own profiles itself, then answers queries in three phases: as the machine is; with a
busy process on each core; without them again. For each ten queries the table shows how long they
took beside the profile, what the published coefficients say of it, and the share of queries that
took longer than their worst case at the length that really came out, twice: with the coefficients
that each query was planned with, and with the profile alone, as if nothing tracked it.

    python benchmarks/drift_under_load.py [--queries 40] [--out drift-NAME.json]

(in the environment of ``build/<distro>/env.sh``)
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import os
from pathlib import Path
import random
import subprocess
import sys
import tempfile
import threading
import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from timebill_ros.cli.server_process import ServerProcess
from timebill_ros.client import TimeBillClient
from timebill_ros.experiments import drift_report
from timebill_ros.experiments.report_file import to_json
from timebill_ros.msg import TimingCoefficients as TimingCoefficientsMsg
from timebill_ros.nodes import qos
from timebill_ros.nodes.coefficients_topic import coefficients_from_msg
from timebill_ros.paths import cache_dir
from timebill_ros.query import QueryTiming
from timebill_ros.time_estimator.coefficients import TimingCoefficients

BUDGET_S = 120.0            # never binding: what is studied is the estimate, not the deadline
RESPONSE_TOKENS = 24
WORDS = ('robot', 'corridor', 'lamp', 'door', 'battery', 'table', 'left', 'slowly', 'camera', 'map')
LONGEST_PROMPT_WORDS = 400
READY_S = 300.0
BUSY = 'while True: pass'


@dataclass
class Answered:
    """One query of a phase."""

    phase: str
    timing: QueryTiming
    planned_with: TimingCoefficients


class Listener:
    """Collects what is published on timebill/coefficients."""

    def __init__(self) -> None:
        """Listen in a thread of its own."""
        self.heard: dict[int, TimingCoefficients] = {}
        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context)
        node = Node('drift_under_load', context=self._context)
        node.create_subscription(
            TimingCoefficientsMsg, qos.COEFFICIENTS_TOPIC, self._on_message, qos.latched_qos())
        executor = SingleThreadedExecutor(context=self._context)
        executor.add_node(node)
        threading.Thread(target=executor.spin, daemon=True).start()

    def _on_message(self, message: TimingCoefficientsMsg) -> None:
        coefficients = coefficients_from_msg(message)
        self.heard[coefficients.stamp_ns] = coefficients


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core of this process busy."""
    cores = len(os.sched_getaffinity(0))
    processes = [subprocess.Popen([sys.executable, '-c', BUSY]) for _ in range(cores)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def ask(client: TimeBillClient, listener: Listener, phase: str, queries: int,
        order: random.Random) -> list[Answered]:
    """Ask questions of mixed lengths, one after the other."""
    answered = []
    for number in range(queries):
        words = round(4 * (LONGEST_PROMPT_WORDS / 4) ** order.random())
        prompt = 'Tell me about: ' + ' '.join(order.choices(WORDS, k=words))
        answer = client.ask(prompt, within=BUDGET_S, max_new_tokens=RESPONSE_TOKENS)
        timing = answer.timing
        if not answer.ok or timing.coefficients_stamp_ns not in listener.heard:
            print(f'query left out: {answer.outcome.name} {answer.error_msg}', file=sys.stderr)
            continue
        answered.append(Answered(phase, timing, listener.heard[timing.coefficients_stamp_ns]))
        print(f'\r{phase}: {number + 1}/{queries}', end='', file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return answered


def main() -> int:
    """Run the experiment; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--queries', type=int, default=40, help='of each phase')
    parser.add_argument('--out', type=Path, help='also write the queries as JSON')
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as made:
        # a profile and a state of its own; the converted model is that of the user
        models = cache_dir() / 'models'
        models.mkdir(parents=True, exist_ok=True)
        (Path(made) / 'models').symlink_to(models)
        answered, base = experiment(arguments.queries, made)
    result = {
        'meta': {
            'date': time.strftime('%Y-%m-%d'), 'key': base.key, 'cores': os.cpu_count(),
            'load_average': load, 'command': ' '.join(
                ['python benchmarks/drift_under_load.py', *sys.argv[1:]])},
        'rows': [drift_report.row_of(each.phase, each.timing, each.planned_with, base)
                 for each in answered]}
    print(drift_report.table(result))
    if arguments.out:
        arguments.out.write_text(to_json(result), encoding='utf-8')
    return 0


def experiment(queries: int, cache: str) -> tuple[list[Answered], TimingCoefficients]:
    """Return the queries of all phases, and the profile that they are compared with."""
    listener, order = Listener(), random.Random(7)
    environment = {**os.environ, 'TIMEBILL_CACHE_DIR': cache}
    with ServerProcess([], environment) as server, TimeBillClient() as client:
        if not client.wait_for_server(READY_S):
            raise RuntimeError('\n'.join(server.log))
        while not listener.heard:
            time.sleep(0.1)
        base = next(iter(listener.heard.values()))
        answered = ask(client, listener, 'as it is', queries, order)
        with busy_cores():
            answered += ask(client, listener, 'busy process on each core', queries, order)
        answered += ask(client, listener, 'without them again', queries, order)
    return answered, base


if __name__ == '__main__':
    sys.exit(main())
