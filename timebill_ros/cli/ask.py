# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill ask``: one question, one answer, in time."""

import argparse
from collections.abc import Callable
import json
import sys
from typing import Any, TextIO

from unique_identifier_msgs.msg import UUID

from timebill_ros.action import Query as QueryAction
from timebill_ros.cli.arguments import add_namespace
from timebill_ros.client import Answer, TimeBillClient
from timebill_ros.nodes.answer import no_answer
from timebill_ros.nodes.conversions import Identity, json_value, NS_PER_S, timing_msg
from timebill_ros.query import Admission, Ending, ErrorCode, Outcome, Overrun, QueryTiming

# 0 = an answer in time. 1 is output that cannot be written, 2 a wrong command line.
EXIT_STATUS = {
    Outcome.COMPLETED: 0,
    Outcome.TRUNCATED: 0,
    Outcome.DEADLINE_MISSED: 3,
    Outcome.INFEASIBLE: 4,
    Outcome.SKIPPED: 5,
    Outcome.INVALID: 6,
    Outcome.CANCELED: 7,
    Outcome.FAILED: 8,
}
# Of what the fields' types cannot hold; of all else the server says it.
_CODES = {
    'max_new_tokens': ErrorCode.INVALID_MAX_NEW_TOKENS,
    'min_tier': ErrorCode.INVALID_MIN_TIER,
    'seed': ErrorCode.INVALID_SAMPLING,
    'stop': ErrorCode.INVALID_STOP,
}
_ADMISSIONS = {
    'default': Admission.SERVER_DEFAULT,
    'best-effort': Admission.BEST_EFFORT,
    'guaranteed': Admission.GUARANTEED,
}
_OVERRUNS = {
    'default': Overrun.SERVER_DEFAULT,
    'kill': Overrun.KILL,
    'skip-next': Overrun.SKIP_NEXT,
    'soft-landing': Overrun.SOFT_LANDING,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.epilog = (
        'Exit status: '
        + ', '.join(f'{code} {each.name}' for each, code in EXIT_STATUS.items())
        + '; 1 the answer cannot be written, 2 the command line is wrong.'
    )
    parser.add_argument('prompt', help='the question; "-" reads it from standard input')
    parser.add_argument(
        '--within', type=float, required=True, metavar='SECONDS', help='hard budget'
    )
    parser.add_argument('--stream', action='store_true', help='print text as it comes')
    parser.add_argument(
        '--json', action='store_true', help='print one JSON object: timing, outcome and response'
    )
    parser.add_argument(
        '--system', default='', metavar='TEXT', help='instructions put before the question'
    )
    parser.add_argument(
        '--max-new-tokens', type=int, default=0, metavar='N', help='cap on the response'
    )
    parser.add_argument('--admission', choices=_ADMISSIONS, default='default')
    parser.add_argument('--overrun', choices=_OVERRUNS, default='default')
    parser.add_argument(
        '--min-tier', default='', metavar='TIER', help='lowest precision allowed; empty = any'
    )
    parser.add_argument(
        '--alpha-max', type=float, default=-1.0, metavar='A', help='largest eviction ratio, 0..0.95'
    )
    parser.add_argument('--temperature', type=float, default=-1.0, metavar='T', help='0 = greedy')
    parser.add_argument('--seed', type=int, default=-1)
    parser.add_argument(
        '--stop', action='append', default=[], metavar='TEXT', help='end at this text; repeatable'
    )
    add_namespace(parser, 'server')
    parser.add_argument(
        '--server-wait',
        type=float,
        default=5.0,
        metavar='SECONDS',
        help='how long to look for the server, before the budget begins',
    )


def run(arguments: argparse.Namespace) -> int:
    """Ask, print, and return the exit status of the outcome."""
    try:
        prompt = _prompt(arguments.prompt)
    except UnicodeDecodeError as error:
        print(f'timebill ask: standard input is not valid UTF-8: {error}', file=sys.stderr)
        return 2
    # Under --json standard output holds one object and nothing else.
    stream = _Stream(sys.stderr if arguments.json else sys.stdout)
    with TimeBillClient(namespace=arguments.namespace, server_wait_s=0.0) as client:
        client.wait_for_server(arguments.server_wait)
        answer = _ask(client, prompt, arguments, stream)
    if arguments.stream:
        stream.end(answer.response)
    if arguments.json:
        print(json.dumps(answer_fields(answer), ensure_ascii=False))
    else:
        _print_answer(answer, streamed=arguments.stream)
    return EXIT_STATUS[answer.outcome]


def _ask(
    client: TimeBillClient, prompt: str, arguments: argparse.Namespace, stream: '_Stream'
) -> Answer:
    """Ask; what cannot even be sent is INVALID as what the server refuses."""
    try:
        pending = client.ask_async(
            prompt,
            within=arguments.within,
            on_feedback=stream.print_new,
            stream=arguments.stream,
            system_prompt=arguments.system,
            max_new_tokens=arguments.max_new_tokens,
            admission=_ADMISSIONS[arguments.admission],
            overrun=_OVERRUNS[arguments.overrun],
            min_tier=arguments.min_tier,
            alpha_max=arguments.alpha_max,
            temperature=arguments.temperature,
            seed=arguments.seed,
            stop=arguments.stop,
        )
    except ValueError as error:
        code = _CODES.get(str(error).split()[0], ErrorCode.INVALID_PROMPT)
        return no_answer(
            Outcome.INVALID, code, str(error), 0, round(arguments.within * NS_PER_S)
        )
    stream.reader_left = pending.cancel
    return pending.result()


def answer_fields(answer: Answer) -> dict[str, Any]:
    """Return the fields of QueryTiming and of the answer for ``json.dumps``; NaN is null."""
    message = answer.message
    if message is None:
        message = timing_msg(QueryTiming(), Ending(answer.outcome), Identity(UUID(), 0, 0, '', ''))
    return {
        **json_value(message),
        'outcome': answer.outcome.name,
        'finish_reason': answer.finish_reason.name,
        'error_code': int(answer.error_code),
        'error_name': answer.error_code.name,
        'error_msg': answer.error_msg,
        'response': answer.response,
        'within_s': answer.within_s,
        'elapsed_s': answer.elapsed_s,
    }


def _prompt(argument: str) -> str:
    return sys.stdin.buffer.read().decode('utf-8') if argument == '-' else argument


class _Stream:
    """Prints text as it comes, and in the end what the feedback had not yet brought."""

    def __init__(self, output: TextIO) -> None:
        self.reader_left: Callable[[], object] = lambda: None  # called when nobody reads any more
        self._output = output
        self._printed = ''
        self._error: OSError | None = None

    def print_new(self, feedback: QueryAction.Feedback) -> None:
        """Print a piece; runs in the client's thread."""
        if self._error is None:
            try:
                self._print(feedback.text)
            except OSError as error:
                self._error = error
                self.reader_left()

    def end(self, response: str) -> None:
        """Print the rest; raises OSError if a piece could not be printed."""
        if self._error is not None:
            raise self._error
        self._print(response[len(self._printed) :] + '\n')

    def _print(self, text: str) -> None:
        self._printed += text
        print(text, end='', flush=True, file=self._output)


def _print_answer(answer: Answer, streamed: bool) -> None:
    if answer.response and not streamed:
        print(answer.response)
    line = f'[{answer.outcome.name} in {answer.elapsed_s:.2f} of {answer.within_s:g} s'
    timing = answer.timing
    if timing.n_generated:
        line += f'; {timing.n_prompt} + {timing.n_generated} tokens, alpha {timing.alpha:.2f}'
    print(line + ']' + (f' {answer.error_msg}' if answer.error_msg else ''), file=sys.stderr)
