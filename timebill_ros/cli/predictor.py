# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill predictor``: collect response lengths, train predictors of them, measure them."""

import argparse
import json
from pathlib import Path
import sys

from timebill_ros.paths import cache_dir

_SHIPPED = (
    Path(__file__).parents[1] / 'length_predictor/checkpoints/smollm2-135m-probe.safetensors')
# As in ``tables_command.MAKERS``, which needs torch to be looked at.
_TABLES = ('comparison', 'refinement', 'training prompts', 'shortened', 'leave one out',
           'bucket widths', 'layers')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.epilog = 'Goes on in the interpreter of the engine if this one has no torch.'
    steps = parser.add_subparsers(dest='step', required=True, metavar='STEP')
    collect = steps.add_parser('collect', help='run the target over a prompt file; resumable')
    collect.add_argument('--prompts', type=Path, required=True, help='JSON lines: id, prompt')
    collect.add_argument('--out', type=Path, required=True, help='length file, JSON lines')
    collect.add_argument('--keep-tokens', action='store_true', help="write the answers' ids too")
    collect.add_argument('--repetition-penalty', type=_above_zero, help="instead of the config's")
    collect.add_argument('--max-rows', type=_whole_number, help='answers generated at once')
    _add_target(collect)
    vary = steps.add_parser('vary', help='make variations of training prompts: more to learn from')
    vary.add_argument('--prompts', type=Path, required=True)
    vary.add_argument('--name', default='a', help='of the variations; another one gives others')
    vary.add_argument('--out', type=Path, required=True, help='prompts, JSON lines')
    vary.add_argument('--config', type=Path, help='instead of config/predictor.yaml')
    states = steps.add_parser('states', help="read the target's states for the probe")
    states.add_argument('--prompts', type=Path, required=True)
    states.add_argument(
        '--lengths', type=Path, help='collected with --keep-tokens; without: prompts only')
    states.add_argument('--out', type=Path, required=True, help='states file, npz')
    _add_target(states)
    train = steps.add_parser('train', help='train a predictor and write its checkpoint')
    train.add_argument(
        'kind', choices=('probe', 'slm', 'length', 'median', 'regression', 'proxy', 's3'))
    train.add_argument('--out', type=Path, help='checkpoint, safetensors')
    train.add_argument(
        '--predictions', type=Path, help='what it says about the held-out prompts, npz')
    _add_variations(train)
    _add_data(train)
    _add_target(train)
    evaluate = steps.add_parser('evaluate', help='measure a checkpoint on the held-out prompts')
    evaluate.add_argument('checkpoint', type=Path)
    evaluate.add_argument('--json', action='store_true')
    _add_data(evaluate)
    _add_target(evaluate)
    tables = steps.add_parser('tables', help='every table of the documentation, in minutes')
    tables.add_argument('--checkpoint', type=Path, default=_SHIPPED, help='of the probe')
    tables.add_argument(
        '--predictions', type=Path, nargs='*', help='files that "train --predictions" wrote')
    tables.add_argument('--real-lengths', type=Path, help='real lengths of other models, JSON')
    tables.add_argument('--real-states', type=Path, help='states of their prompts')
    tables.add_argument('--out', type=Path, required=True, help='JSON; Markdown goes beside it')
    tables.add_argument('--only', nargs='+', default=[], metavar='TABLE', choices=_TABLES,
                        help='make these again, leave the others of the file: '
                             + ', '.join(_TABLES))
    tables.add_argument('--config', type=Path, help='instead of config/predictor.yaml')
    _add_variations(tables)
    _add_data(tables)


def run(arguments: argparse.Namespace) -> int:
    """Do one step; 0, or 1 with the reason on standard error."""
    from timebill_ros.engine.errors import EngineError
    from timebill_ros.length_predictor import commands
    from timebill_ros.length_predictor.settings import read_settings

    try:
        settings = read_settings(arguments.config)
        result = getattr(commands, arguments.step)(arguments, settings)
    except (EngineError, ValueError, OSError) as error:
        print(f'timebill predictor {arguments.step}: {error}', file=sys.stderr)
        return 1
    print(json.dumps(result, indent=None if getattr(arguments, 'json', False) else 2))
    return 0


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--model', default='embedded', help='as for "timebill profile"')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--dtype', default='bfloat16', choices=('bfloat16', 'float32'))
    parser.add_argument('--cache-dir', type=lambda text: cache_dir(text), default=cache_dir())
    parser.add_argument('--config', type=Path, help='instead of config/predictor.yaml')


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--prompts', type=Path, required=True)
    parser.add_argument(
        '--lengths',
        type=Path,
        required=True,
        nargs='+',
        help='one file per run; the first one is what is measured against',
    )
    parser.add_argument('--states', type=Path, help='for the probe')


def _add_variations(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--more-lengths', type=Path, nargs='*', default=[],
                        help='of variations, for the probe')
    parser.add_argument('--more-states', type=Path, nargs='*', default=[],
                        help='of the same variations')


def _whole_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number from 1')
    return int(text)


def _above_zero(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0.0 < number < float('inf'):
        raise argparse.ArgumentTypeError(f'{text!r} is not a number above 0')
    return number
