# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill profile --quality``: what tiers and evictions cost in quality; needs no ROS."""

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

from timebill_ros.cli.profile_progress import ProgressBar
from timebill_ros.executor.engine_command import engine_environment, engine_python, module_argv
from timebill_ros.paths import config_file

CALIBRATION = 'quality/calibration.jsonl.gz'
_TIERS = ['bf16', 'int8', 'int4']


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments that only this measurement has."""
    parser.add_argument(
        '--quality', action='store_true',
        help='measure what tiers and evictions lose instead of what takes how long')
    parser.add_argument(
        '--prompts', default='', metavar='FILE',
        help='with --quality: JSON lines with id, prompt and, for a task score, answers (right '
             'ones); default: the set that is shipped, without answers')
    parser.add_argument(
        '--lengths', type=int, nargs='+', default=[128, 512, 2048, 4096], metavar='N',
        help='with --quality: prompt lengths in tokens')
    parser.add_argument(
        '--most', type=int, default=0, metavar='N', help='with --quality: prompts; 0 = all')
    parser.add_argument(
        '--out', default='', metavar='FILE',
        help='with --quality: file to write instead of the one that servers read')


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the losses, and return 0; 1 if it failed."""
    with ProgressBar() as bar:
        last = _measured(arguments, bar)
    if 'quality' not in last:
        print(f'timebill profile: {last.get("error", "the engine ended")}', file=sys.stderr)
        return 1
    print(json.dumps(last) if arguments.json else _table(last))
    return 0


def _measured(arguments: argparse.Namespace, bar: ProgressBar) -> dict[str, Any]:
    """Run the measurement in the engine's interpreter; returns its last message."""
    try:
        job = {
            'load': {
                'model': arguments.model, 'device': arguments.device, 'dtype': arguments.dtype,
                'threads': arguments.threads, 'max_context': arguments.max_context,
                'cache_dir': arguments.cache_dir, 'tiers': arguments.tiers or _TIERS,
                'max_batch': 1},
            'prompts': os.path.abspath(arguments.prompts or config_file(CALIBRATION)),
            'lengths': sorted(arguments.lengths), 'most': arguments.most,
            'out': os.path.abspath(arguments.out) if arguments.out else ''}
        process = subprocess.Popen(
            module_argv(engine_python(arguments.engine_python), 'executor.quality_main',
                        json.dumps(job)),
            env=engine_environment(os.environ), stdout=subprocess.PIPE, encoding='utf-8')
    except OSError as error:
        return {'error': f'the engine cannot be started: {error}'}
    message: dict[str, Any] = {}
    began_s = 0.0
    with process:
        for line in process.stdout or ():
            message = _message(line) or message
            if message.get('what') == 'prompts':
                began_s = began_s or time.monotonic()
                done, total = message['done'], message['total']
                left_s = (time.monotonic() - began_s) * (total - done) / max(1, done)
                bar.move('prompts', done, total, left_s)
            elif 'what' in message:
                bar.say(message['what'])
    return message


def _message(line: str) -> dict[str, Any]:
    """Return a line's object; what a library printed is none."""
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _table(measured: dict[str, Any]) -> str:
    quality, about = measured['quality'], measured['about']
    lines = [f'{quality["model"]} on {about["device"]}, {about["date"]}: {about["prompts"]} '
             f'prompts, {about["seconds"]} s',
             f'{"tokens":>7} {"tier":6}{"alpha":>6}{"loss":>8}{"divergence":>12}'
             f'{"agreement":>11}{"perplexity":>12}{"score":>8}']
    alphas = quality['alphas']
    for cell in about['cells']:
        row = quality['lengths'].index(cell['length'])
        loss = quality['losses'][cell['tier']][row][alphas.index(cell['alpha'])]
        lines.append(
            f'{cell["length"]:7d} {cell["tier"]:6}{cell["alpha"]:6.2f}{loss:8.4f}'
            f'{cell["divergence"]:12.4f}{cell["agreement"]:11.1%}{cell["perplexity"]:12.2f}'
            + ('' if cell['score'] is None else f'{cell["score"]:8.3f}'))
    return '\n'.join([*lines, f'stored in {measured["path"]}'])
