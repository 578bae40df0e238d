# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
``timebill demo``: a server, seven queries with different budgets, and a table of what came of them.

No budget is written down here: the first two queries measure this machine, and the others are
given budgets that follow from that, so that each ends as its name says on a small CPU and on a big
GPU alike.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
import math
import os
import sys
import threading
import time

from timebill_ros.action import Query as QueryAction
from timebill_ros.cli.server_process import ServerProcess
from timebill_ros.client import Answer, TimeBillClient
from timebill_ros.query import Admission, Outcome, QueryTiming

START_TIMEOUT_S = 600.0
LOST_AT_START = '; next start in '  # what the node logs
GENEROUS_S = 120.0
# Enough prompt and response that what eviction saves shows beside the noise of the machine.
SENTENCES, CAP_TOKENS = 130, 256
# For a machine that answers that in less than this many seconds: all that the context holds.
FAST_S = 1.0
FAST_SENTENCES, FAST_CAP_TOKENS = 580, 512
ATTEMPTS = 5
NOISE = 1.1  # measured times vary by this factor from run to run
LEAST_SAVED = 0.95  # an eviction is taken to leave no more of the worst case of decoding


@dataclass
class Row:
    """One query of the table."""

    name: str
    answer: Answer
    expected: str  # for people
    as_expected: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument('--model', default='embedded', help='as for "timebill serve"')
    parser.add_argument('--device', default='auto', help='as for "timebill serve"')


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; the exit status is 0 if every query ended as it should."""
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    namespace = f'demo_{os.getpid()}'
    print('Starting a server; the first time, its model is converted and measured ...', flush=True)
    started_s = time.monotonic()
    # The paper's policy, because "joint" would not miss: it caps what does not fit.
    given = ['--model', arguments.model, '--device', arguments.device, '--namespace', namespace,
             '--param', 'policy:=paper']
    with ServerProcess(given, show=True) as server, TimeBillClient(namespace=namespace) as client:
        if not _wait_for(server, client):
            print('timebill demo: the server did not start; see its log above', file=sys.stderr)
            return 1
        print(f'The server was ready after {time.monotonic() - started_s:.1f} s.\n', flush=True)
        rows = Demo(client).run()
    print('\n' + table(rows))
    failed = [row for row in rows if not row.as_expected]
    for row in failed:
        print(
            f'timebill demo: {row.name!r} should end {row.expected}, but ended '
            f'{row.answer.outcome.name} {row.answer.error_msg}',
            file=sys.stderr,
        )
    return 1 if failed else 0


def _wait_for(server: ServerProcess, client: TimeBillClient) -> bool:
    end_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end_s and server.is_running:
        if client.wait_for_server(1.0):
            return True
        if any(LOST_AT_START in line for line in list(server.log)):
            return False  # it tries again for ever; whoever reads the log need not wait
    return False


class Demo:
    """The queries, one after the other; each adds a row."""

    def __init__(self, client: TimeBillClient) -> None:
        """Ask through this client."""
        self._client = client
        self._rows: list[Row] = []
        self._long_prompts = 0
        self._sentences, self._cap_tokens = SENTENCES, CAP_TOKENS

    def run(self) -> list[Row]:
        """Ask them all."""
        self._ask(
            'generous',
            'What is the capital of France?',
            GENEROUS_S,
            'COMPLETED with alpha = 0',
            _whole,
        )
        long = self._ask_long()
        if long.ok and long.elapsed_s < FAST_S:
            self._rows.pop()
            self._sentences, self._cap_tokens = FAST_SENTENCES, FAST_CAP_TOKENS
            long = self._ask_long()
        if not long.ok:
            return self._rows
        whole = long.timing
        least_prefill_s = min(whole.prefill, whole.predicted_prefill)
        refused = self._ask(
            'guaranteed',
            self._long_prompt(),
            whole.delivery_margin + least_prefill_s + 0.25 * whole.predicted_decode_worst,
            'INFEASIBLE before any work is done',
            lambda answer: (
                answer.outcome == Outcome.INFEASIBLE and math.isnan(answer.timing.prefill)
            ),
            admission=Admission.GUARANTEED,
        )
        self._tight(whole, refused.timing)
        self._must_miss(whole)
        self._ask(
            'no hope',
            self._long_prompt(),
            # Time to find out how long the prompt is, and then to read half of it.
            whole.delivery_margin + whole.plan_elapsed - whole.prefill + least_prefill_s / 2,
            'INFEASIBLE at once',
            lambda answer: (
                answer.outcome == Outcome.INFEASIBLE and math.isnan(answer.timing.prefill)
            ),
        )
        self._canceled()
        return self._rows

    def _ask_long(self) -> Answer:
        return self._ask(
            'long prompt', self._long_prompt(), GENEROUS_S, 'COMPLETED with alpha = 0', _whole
        )

    def _tight(self, whole: QueryTiming, cheapest: QueryTiming) -> None:
        """Give a budget between the worst case with the largest eviction and that with none."""
        # Tracking scales the laws: by so much the machine was slower when the cheapest was planned.
        slower = sum(cheapest.law_decode_step) / sum(whole.law_decode_step)
        most_s = whole.predicted_decode_worst
        least_s = min(cheapest.predicted_decode_worst / slower, LEAST_SAVED * most_s)
        share, newest, reading_s = 0.5, whole, 0.0
        for attempt in range(ATTEMPTS):
            # Between two queries the laws follow the machine: both ends of the band move alike.
            moved = newest.predicted_decode_worst / most_s
            within_s = _until_planned_s(newest) + reading_s + moved * (
                cheapest.predicted_evict + least_s + share * (most_s - least_s)
            )
            answer = self._ask(
                'tight',
                self._long_prompt(),
                within_s,
                'COMPLETED with alpha > 0',
                lambda answer: answer.ok and answer.timing.alpha > 0.0,
            )
            if self._rows[-1].as_expected or attempt == ATTEMPTS - 1:
                return
            self._once_more()
            if answer.ok:       # whole: its plan says what it takes now without an eviction
                newest, share, reading_s = answer.timing, share - 0.1, 0.0
            elif math.isnan(answer.timing.predicted_decode_worst):
                reading_s += (NOISE - 1.0) * newest.prefill
            else:
                share += 0.3

    def _must_miss(self, whole: QueryTiming) -> None:
        """Give longer than the prefill is predicted to take, or it would not be begun; no more."""
        timing, noise = whole, NOISE
        for attempt in range(ATTEMPTS):
            answer = self._ask(
                'must miss',
                self._long_prompt(),
                noise * max(_until_planned_s(whole), timing.predicted_prefill)
                + 0.1 * timing.predicted_decode_worst,
                'DEADLINE_MISSED, with the text so far',
                lambda answer: answer.outcome == Outcome.DEADLINE_MISSED,
                max_new_tokens=0,
            )
            if self._rows[-1].as_expected or attempt == ATTEMPTS - 1:
                return
            self._once_more()
            if answer.ok:       # what was added for noise was enough for the whole answer
                noise = 1.0 + (noise - 1.0) / 4
            if not math.isnan(answer.timing.predicted_decode_worst):
                timing = answer.timing

    def _once_more(self) -> None:
        print('    the machine was faster or slower than a moment ago; once more')
        self._rows.pop()

    def _canceled(self) -> None:
        decoding = threading.Event()

        def watch(feedback: QueryAction.Feedback) -> None:
            if feedback.stage == QueryAction.Feedback.STAGE_DECODE:
                decoding.set()

        print('asking: canceled ...', flush=True)
        pending = self._client.ask_async(
            self._long_prompt(),
            within=GENEROUS_S,
            on_feedback=watch,
            max_new_tokens=self._cap_tokens,
        )
        decoding.wait(GENEROUS_S)
        pending.cancel()
        answer = pending.result()
        self._rows.append(Row('canceled', answer, 'CANCELED', answer.outcome == Outcome.CANCELED))

    def _ask(
        self,
        name: str,
        prompt: str,
        within_s: float,
        expected: str,
        check: Callable[[Answer], bool],
        admission: Admission = Admission.BEST_EFFORT,
        max_new_tokens: int | None = None,
    ) -> Answer:
        print(f'asking: {name}, within {within_s:.2f} s ...', flush=True)
        answer = self._client.ask(
            prompt,
            within=within_s,
            max_new_tokens=self._cap_tokens if max_new_tokens is None else max_new_tokens,
            admission=admission,
        )
        self._rows.append(Row(name, answer, expected, check(answer)))
        return answer

    def _long_prompt(self) -> str:
        """Return a long prompt; no two begin alike, so that none profits from another."""
        self._long_prompts += 1
        sentences = [
            f'Report {self._long_prompts}: a robot went through a house and noted what it saw.'
        ]
        things = (
            'a red chair',
            'an open door',
            'a sleeping cat',
            'a cup of tea',
            'a broken lamp',
            'a wet floor',
        )
        for number in range(self._sentences):
            sentences.append(f'In room {number + 1} there was {things[number % len(things)]}.')
        return ' '.join(sentences) + ' Tell the story of this robot in many words, room by room.'


def _whole(answer: Answer) -> bool:
    return answer.outcome == Outcome.COMPLETED and answer.timing.alpha == 0.0


def _until_planned_s(timing: QueryTiming) -> float:
    """Return the measured time from arrival to the plan, and what is kept back at the end."""
    return timing.plan_elapsed + timing.predicted_overhead + timing.delivery_margin


def table(rows: list[Row]) -> str:
    """Return the table of the queries. Lengths in tokens, times in seconds; "-" is "not known"."""
    head = (
        'query',
        'budget',
        'N_x',
        'N^',
        'N^_W',
        'N',
        'alpha',
        'worst case',
        'predicted',
        'measured',
        'outcome',
    )
    cells = [head]
    for row in rows:
        timing = row.answer.timing
        cells.append(
            (
                row.name,
                f'{row.answer.within_s:.2f}',
                _count(timing.n_prompt),
                _count(timing.n_predicted),
                _count(timing.n_worst),
                str(timing.n_generated),
                f'{timing.alpha:.2f}',
                _seconds(timing.predicted_total_worst),
                _seconds(_predicted_s(timing)),
                f'{row.answer.elapsed_s:.2f}',
                row.answer.outcome.name,
            )
        )
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    lines = [
        '  '.join(
            cell.ljust(width) if column in (0, len(head) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths))
        ).rstrip()
        for line in cells
    ]
    lines.insert(1, '  '.join('-' * width for width in widths))
    return '\n'.join(lines) + (
        '\n\nTokens: N_x of the prompt; N^, N^_W and N of the response: predicted, worst case, true'
        '\nalpha: share of the prompt evicted from the KV cache so that the worst case fits'
        '\nSeconds: budget; worst case with N^_W; predicted with N; measured at the client'
        '\n"-": not known, as nothing was predicted or done; what each outcome means: README.md'
    )


def _predicted_s(timing: QueryTiming) -> float:
    """Return the prediction at the length that came out, to compare with what was measured."""
    evict_s = timing.predicted_evict if timing.alpha > 0.0 else 0.0
    return (
        timing.predicted_prefill
        + evict_s
        + timing.predicted_decode_realised
        + timing.predicted_overhead
    )


def _count(tokens: int) -> str:
    return str(tokens) if tokens else '-'


def _seconds(value: float) -> str:
    return f'{value:.2f}' if math.isfinite(value) else '-'
