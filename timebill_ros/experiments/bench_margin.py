# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
``timebill bench margin``: how much of a budget the way to the client needs (delivery_margin_s).

Queries that must miss, one after the other, while the engine decodes. Measured in the client: from
the moment at which the node ends the query (deadline less margin) to the result, with the client's
clock started before sending. A margin of at least that has the result there by the deadline.
"""

import argparse
import os
import platform
import random
import time
from typing import Any

from timebill_ros.cli.server_process import ServerProcess
from timebill_ros.client import Answer, TimeBillClient
from timebill_ros.experiments.report_file import deliver
from timebill_ros.query import Outcome

PROMPT = 'Tell me a very long story about a robot and a lighthouse, with many details.'
START_TIMEOUT_S = 600.0
# Enough to get to the decoding, and never at the same place of it.
BUDGETS_S = (1.0, 2.0)
SHARES = (0.5, 0.9, 0.97, 0.99, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument('--queries', type=int, default=100, help='queries that miss (default 100)')
    parser.add_argument('--device', default='auto', help='as for "timebill serve"')


def run(arguments: argparse.Namespace) -> int:
    """Measure, and print a table or one JSON object."""
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    namespace = f'bench_{os.getpid()}'
    given = ['--namespace', namespace, '--no-calibration', '--device', arguments.device,
             '--param', 'policy:=paper']        # "joint" would cap what is to miss
    with ServerProcess(given), TimeBillClient(namespace=namespace, late_wait_s=5.0) as client:
        if not client.wait_for_server(START_TIMEOUT_S):
            raise RuntimeError('the server did not start; see "timebill serve"')
        answers = ask_all(client, arguments.queries)
    report = {
        'date': time.strftime('%Y-%m-%d'),
        'machine': f'{platform.machine()}, {os.cpu_count()} cores',
        'queries': len(answers),
        'margin_s': answers[0].timing.delivery_margin,
        'node_s': quantiles([node_s(answer) for answer in answers]),
        'needed_s': quantiles([needed_s(answer) for answer in answers]),
    }
    deliver(report, arguments, table)
    return 0


def ask_all(client: TimeBillClient, queries: int) -> list[Answer]:
    """Return the answers that missed; what the model ended in time is asked again."""
    drawn = random.Random(1)
    answers: list[Answer] = []
    for _ in range(2 * queries):
        answer = client.ask(PROMPT, within=drawn.uniform(*BUDGETS_S))
        if answer.outcome == Outcome.DEADLINE_MISSED:
            answers.append(answer)
        if len(answers) == queries:
            return answers
    raise RuntimeError(f'only {len(answers)} of {2 * queries} queries missed their deadline')


def node_s(answer: Answer) -> float:
    """Return how long after the plan deadline the node had the result ready."""
    return answer.timing.delivery_margin - answer.timing.slack


def needed_s(answer: Answer) -> float:
    """Return how long after the plan deadline the result was at the client."""
    return answer.elapsed_s - (answer.within_s - answer.timing.delivery_margin)


def quantiles(values: list[float]) -> dict[str, float]:
    """Return the values that these shares of all lie at or below."""
    ordered = sorted(values)
    return {
        f'{share:g}': ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in SHARES
    }


def table(report: dict[str, Any]) -> str:
    """Return the report for people, in milliseconds."""
    lines = [
        f'{report["date"]}, {report["machine"]}, {report["queries"]} queries, '
        f'delivery_margin_s = {report["margin_s"]:g}',
        'ms after the plan deadline' + ''.join(f'{share:>9.0%}' for share in SHARES),
    ]
    for name, key in (('node has the result', 'node_s'), ('client has the result', 'needed_s')):
        lines.append(f'{name:26}' + ''.join(f'{1e3 * each:9.1f}' for each in report[key].values()))
    return '\n'.join(lines)
