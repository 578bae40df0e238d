# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Several planners at one server: every query is in time, or says why not; every cancel is heard.

Each client asks one query after the other over real DDS, with a budget drawn between far too small
and generous, streaming every second one and canceling every fifth while it decodes. Prints the
outcomes, and what must be zero: answers that came late, and streamed pieces that are not how the
response begins. (Its last piece may come with the result alone.)
"""

import argparse
from collections import Counter
import json
import os
from pathlib import Path
import random
import shlex
import sys
import threading
import time

from timebill_ros.action import Query as QueryAction
from timebill_ros.cli.server_process import ServerProcess
from timebill_ros.client import Answer, TimeBillClient
from timebill_ros.experiments.bench_node import quantiles
from timebill_ros.query import Outcome

CAP_TOKENS = 128
LEAST_S, MOST_S = 0.02, 4.0  # budgets, drawn evenly on a logarithmic scale
PROMPTS = ('Name a colour.', 'What is the capital of France?', 'Write a long story about a robot.')
FILLER = 'In this room there was a red chair and an open door. '
CANCEL_EVERY, STREAM_EVERY = 5, 2


class Planner:
    """Asks until the time is over, and keeps what came of it."""

    def __init__(self, namespace: str, seed: int) -> None:
        """Connect."""
        self.answers: list[Answer] = []
        self.first_text_ms: list[float] = []
        self.cancel_ms: list[float] = []
        self.torn = 0  # completed answers that do not begin with what was streamed
        self._random = random.Random(seed)
        self._client = TimeBillClient(namespace=namespace)

    def run(self, until_s: float) -> None:
        """Ask one query after the other."""
        number = 0
        while time.monotonic() < until_s:
            number += 1
            self._ask(number % STREAM_EVERY == 0, number % CANCEL_EVERY == 0)
        self._client.close()

    def _ask(self, stream: bool, cancel: bool) -> None:
        pieces: list[str] = []
        began = threading.Event()
        started_s = time.monotonic()

        def watch(feedback: QueryAction.Feedback) -> None:
            pieces.append(feedback.text)
            if feedback.n_generated and not began.is_set():
                self.first_text_ms.append((time.monotonic() - started_s) * 1e3)
                began.set()

        within_s = LEAST_S * (MOST_S / LEAST_S) ** self._random.random()
        prompt = FILLER * self._random.choice((0, 0, 10, 60)) + self._random.choice(PROMPTS)
        pending = self._client.ask_async(
            prompt, within=within_s, on_feedback=watch, stream=stream, max_new_tokens=CAP_TOKENS
        )
        canceled_s = 0.0
        if cancel and began.wait(within_s) and pending.cancel():
            canceled_s = time.monotonic()
        answer = pending.result()
        if canceled_s and answer.outcome == Outcome.CANCELED:
            self.cancel_ms.append((time.monotonic() - canceled_s) * 1e3)
        if answer.outcome == Outcome.COMPLETED and not answer.response.startswith(''.join(pieces)):
            self.torn += 1
        self.answers.append(answer)


def report(planners: list[Planner]) -> dict[str, object]:
    """Return the counts, and the quantiles of the times in milliseconds."""
    answers = [answer for planner in planners for answer in planner.answers]
    ended = Counter(f'{each.outcome.name} {each.error_code.name}' for each in answers)
    first = [each for planner in planners for each in planner.first_text_ms]
    cancels = [each for planner in planners for each in planner.cancel_ms]
    timing = next(each.message for each in answers if each.message is not None)
    return {
        'date': time.strftime('%Y-%m-%d'),
        'model': timing.model,
        'device': timing.device,
        'command': shlex.join(['benchmarks/node_clients.py', *sys.argv[1:]]),
        'clients': len(planners),
        'queries': len(answers),
        'outcomes': dict(ended.most_common()),
        'ok_but_late': sum(each.ok and each.lateness_s > 0.0 for each in answers),
        'without_result': sum(each.message is None for each in answers),
        'at_client_after_deadline': sum(each.lateness_s > 0.0 for each in answers),
        'streams_torn': sum(planner.torn for planner in planners),
        'first_feedback_ms': quantiles(first) if first else {},
        'cancel_ms': quantiles(cancels) if cancels else {},
    }


def main() -> None:
    """Start a server, let the planners ask, print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--device', default='auto', help='as for "timebill serve"')
    parser.add_argument('--clients', type=int, default=4)
    parser.add_argument('--seconds', type=float, default=30.0)
    parser.add_argument('--out', type=Path, help='write the JSON that the table in docs is of')
    arguments = parser.parse_args()
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    namespace = f'clients_{os.getpid()}'
    given = ['--device', arguments.device, '--namespace', namespace]
    with ServerProcess(given, show=True):
        planners = [Planner(namespace, seed) for seed in range(arguments.clients)]
        with TimeBillClient(namespace=namespace) as client:
            if not client.wait_for_server(120.0):
                raise SystemExit('the server did not start')
        until_s = time.monotonic() + arguments.seconds
        threads = [threading.Thread(target=each.run, args=(until_s,)) for each in planners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    made = json.dumps(report(planners), indent=1) + '\n'
    if arguments.out:
        arguments.out.write_text(made, encoding='utf-8')
    print(made)


if __name__ == '__main__':
    main()
