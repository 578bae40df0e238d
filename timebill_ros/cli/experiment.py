# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill experiment NAME``: one of the measurements behind the claims, from a command."""

import argparse
from pathlib import Path
import sys

from timebill_ros.experiments.suite import EXPERIMENTS

DEFAULT_OUT = Path('timebill-experiments')
_SHOWN = 5      # rows that are not what they claim to be


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.epilog = 'Experiments: ' + '; '.join(
        f'{name}: {text}' for name, text in EXPERIMENTS.items()
    )
    parser.add_argument('names', nargs='+', choices=[*EXPERIMENTS, 'all'], metavar='NAME',
                        help='several share one engine')
    add_settings(parser, '--out')


def add_settings(parser: argparse.ArgumentParser, folder: str) -> None:
    """Describe what every experiment takes; ``folder`` is the option that names where it goes."""
    parser.add_argument('--quick', action='store_true', help='a minute each, to see that it works')
    parser.add_argument(folder, type=Path, default=DEFAULT_OUT, metavar='DIR',
                        help='folder of the results (default: %(default)s); a second start goes on')
    parser.add_argument('--data', default='', metavar='DIR',
                        help='folder of longbench.jsonl.gz and prompts.jsonl.gz; default: '
                             '$TIMEBILL_DATA or ./data')
    parser.add_argument('--model', default='embedded')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--tiers', default='bf16,int8,int4', metavar='T,T',
                        help='precision tiers to load (default: %(default)s)')
    parser.add_argument('--items', type=int, default=0, metavar='N', help='questions')
    parser.add_argument('--methods', default='', metavar='M,M',
                        help='those of budgets, theta and load, e.g. vanilla,paper,joint; '
                             'default: all')
    parser.add_argument('--seed', type=int, default=7)
    parser.add_argument('--limit', type=_limits, default=[0.0], metavar='S,S',
                        help='begin no case so many seconds after the first, each NAME (the last '
                             'number holds for all further ones); the summary says what misses')
    parser.add_argument('--ros', action='store_true',
                        help='ask through the action of a real node (budgets, robot)')
    parser.add_argument('--engine-python', default='', help='interpreter of the engine')
    parser.add_argument('--cache-dir', default='', help='models and timing profiles')


def run(arguments: argparse.Namespace) -> int:
    """Run one experiment, or all in turn; returns the exit status."""
    from timebill_ros.experiments.engine_host import EngineFailed
    from timebill_ros.experiments.recorder import OtherExperiment
    from timebill_ros.experiments.run import read_summary
    from timebill_ros.experiments.run import run as run_experiment
    from timebill_ros.experiments.workbench import EngineKeeper, Settings

    settings = Settings(
        arguments.quick, arguments.model, arguments.device,
        _names(arguments.tiers), arguments.data, arguments.seed, arguments.items,
        _names(arguments.methods), arguments.ros, arguments.engine_python, arguments.cache_dir)
    names = list(EXPERIMENTS) if 'all' in arguments.names else arguments.names
    status = 0
    with EngineKeeper(settings) as keeper:
        for number, name in enumerate(names):
            limit_s = arguments.limit[min(number, len(arguments.limit) - 1)]
            try:
                folder = run_experiment(name, settings, arguments.out, keeper, limit_s)
            except (OtherExperiment, EngineFailed, OSError) as error:
                print(f'timebill experiment {name}: {error}', file=sys.stderr)
                status = 1
                keeper.close()      # the next one starts an engine of its own
                continue
            print(folder, flush=True)
            wrong = read_summary(folder)['not_as_claimed']
            for each in wrong[:_SHOWN]:
                print(f'not measured as claimed: {each}', file=sys.stderr)
            status = status or int(bool(wrong))
    return status


def _limits(listed: str) -> list[float]:
    return [float(each) for each in listed.split(',')]


def _names(listed: str) -> tuple[str, ...]:
    return tuple(each for each in listed.split(',') if each)
