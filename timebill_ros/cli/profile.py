# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill profile``: measure the model on this machine; store the fit with its samples."""

import argparse
import json
from math import isnan
import sys

from timebill_ros.cli import profile_quality
from timebill_ros.cli.arguments import add_namespace, count
from timebill_ros.cli.profile_progress import Outcome, ProgressBar
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.fit import doubts
from timebill_ros.time_estimator.forms import MOST_TOKENS
from timebill_ros.time_estimator.laws import Behind, Law, OVERHEAD, RECOVERY
from timebill_ros.time_estimator.points import LEAST_TOKENS, MOST_REPEATS

_SHOWN_TOKENS = (64, 512, 4096)     # lengths at which the table shows each law


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.epilog = (
        'Queries share the machine: measure with nothing else running. A server that starts later '
        'plans with the stored profile; one that runs is measured with --server.')
    parser.add_argument(
        '--server', action='store_true',
        help='have a running server measure itself (action timebill/profile) and plan with it')
    parser.add_argument(
        '--drain', action='store_true',
        help='with --server: let its queries end first; without, it refuses while it has any')
    add_namespace(parser, 'server')
    parser.add_argument(
        '--model', default='embedded', help='model directory, GGUF file, hub name, or "embedded"')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--dtype', default='auto', help='auto, float32, bfloat16 or float16')
    parser.add_argument('--threads', type=count(1, 1024), default=0, help='CPU threads; 0 = chosen')
    parser.add_argument(
        '--max-context', type=count(1, MOST_TOKENS), default=0, metavar='N',
        help='as the server has it; 0 = model')
    parser.add_argument(
        '--tiers', nargs='+', default=[], metavar='T',
        help='as the server has it, the best one first; with --quality: default bf16 int8 int4')
    parser.add_argument('--engine-python', default='', metavar='PATH', help='as the server has it')
    parser.add_argument('--cache-dir', default='', metavar='DIR', help='as the server has it')
    parser.add_argument(
        '--max-tokens', type=count(LEAST_TOKENS, MOST_TOKENS), default=0, metavar='N',
        help='longest context to measure; 0 = chosen')
    parser.add_argument(
        '--repeats', type=count(1, MOST_REPEATS), default=0, metavar='N',
        help='visits of each point; 0 = chosen')
    parser.add_argument(
        '--json', action='store_true', help='print one JSON object: path and coefficients')
    profile_quality.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the laws, and return 0; 1 if it failed, 130 if it was interrupted."""
    if arguments.quality:
        return profile_quality.run(arguments)
    # Imported here: only the one that is used needs ROS, or an engine of ours.
    if arguments.server:
        from timebill_ros.cli.profile_server import measure
    else:
        from timebill_ros.cli.profile_engine import measure
    with ProgressBar() as bar:
        outcome = measure(arguments, bar)
    if outcome.error_msg or outcome.coefficients is None:
        print(f'timebill profile: {outcome.error_msg}', file=sys.stderr)
        return 1
    if arguments.json:
        print(json.dumps({'path': outcome.path, **outcome.coefficients.to_dict()}))
    else:
        _print_table(outcome)
    return 0


def _print_table(outcome: Outcome) -> None:
    coefficients: TimingCoefficients | None = outcome.coefficients
    if coefficients is None:
        return
    print(coefficients.key)
    heads = [f'{n} tokens' for n in _SHOWN_TOKENS]
    print(f'{"law":20}{"form":11}' + ''.join(f'{head:>14}' for head in heads)
          + f'{"worst/law":>11}{"unseen":>9}{"samples":>9}')
    for law in coefficients.laws:
        print(_row(law))
    for doubt in doubts(coefficients.laws):
        print(f'warning: {doubt}')
    print(f'* of the response, the others of the prompt or the cache; stored in {outcome.path}')


def _row(law: Law) -> str:
    times = ''.join(f'{1e3 * _shown_s(law, n):11.2f} ms' for n in _SHOWN_TOKENS)
    unseen = '-' if isnan(law.mape) else f'{law.mape:.1%}'
    name = law.title + (' *' if law.law in (OVERHEAD, RECOVERY) else '')
    return f'{name:20}{law.form:11}{times}{law.worst_ratio:11.2f}{unseen:>9}{law.samples:9d}'


def _shown_s(law: Law, n_tokens: int) -> float:
    if law.law == RECOVERY:     # of so many steps in all, behind a long prompt
        return law.behind(Behind(MOST_TOKENS), n_tokens)
    return law.seconds(n_tokens)
