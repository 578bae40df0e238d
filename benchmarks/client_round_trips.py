# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
What several clients in one process cost beside any model: blank prompts, refused at once.

Each client asks one after the other, over real DDS. Prints how long answers take in each half of
the time, because what a server still keeps of older goals grows meanwhile, and the processor time
of this process per query.
"""

import argparse
import os
import threading
import time

from timebill_ros.cli.server_process import ServerProcess
from timebill_ros.client import TimeBillClient
from timebill_ros.experiments.bench_node import quantiles

WITHIN_S = 5.0
PAUSE_S = 0.03      # between an answer and the client's next question


def ask_until(client: TimeBillClient, end_s: float, seen: list[tuple[float, float]]) -> None:
    """Ask until the time is over; note when each answer came, and after how many milliseconds."""
    while time.monotonic() < end_s:
        answer = client.ask('', within=WITHIN_S)
        seen.append((time.monotonic(), 1e3 * answer.elapsed_s))
        time.sleep(PAUSE_S)


def main() -> None:
    """Start a server, let the clients ask, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--clients', type=int, default=4)
    parser.add_argument('--seconds', type=float, default=20.0)
    arguments = parser.parse_args()
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    namespace = f'round_trips_{os.getpid()}'
    with ServerProcess(['--namespace', namespace], show=True):
        clients = [TimeBillClient(namespace=namespace) for _ in range(arguments.clients)]
        if not all(each.wait_for_server(120.0) for each in clients):
            raise SystemExit('the server did not start')
        seen: list[tuple[float, float]] = []
        end_s, spent_s = time.monotonic() + arguments.seconds, time.process_time()
        threads = [threading.Thread(target=ask_until, args=(each, end_s, seen)) for each in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        spent_s = time.process_time() - spent_s
        for each in clients:
            each.close()
    half_s = end_s - arguments.seconds / 2
    for name, part in (('first half', [ms for at_s, ms in seen if at_s < half_s]),
                       ('second half', [ms for at_s, ms in seen if at_s >= half_s])):
        print(f'{name}: {len(part)} answers, ms: {quantiles(part)}')
    print(f'processor time per query: {1e3 * spent_s / len(seen):.1f} ms')


if __name__ == '__main__':
    main()
