# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the steps of ``timebill predictor`` share: files that belong together, the target."""

import argparse
from pathlib import Path
import subprocess
import sys
from typing import Any, Sequence

import numpy as np
from numpy.typing import NDArray

from timebill_ros.length_predictor.checkpoint import Card
from timebill_ros.length_predictor.collect import Lengths, read_lengths
from timebill_ros.length_predictor.fit_head import HeadConfig
from timebill_ros.length_predictor.states_file import StatesFile
from timebill_ros.length_predictor.target import load_target, Target
from timebill_ros.length_predictor.train import HeadTraining, Rows


def read_runs(paths: list[Path]) -> list[Lengths]:
    """Read the length files of several runs; ValueError if their settings differ."""
    runs = [read_lengths(path) for path in paths]
    first = _settings_of(runs[0])
    for path, run in zip(paths, runs):
        if _settings_of(run) != first:
            raise ValueError(f'{path} was collected with other settings than {paths[0]}')
    return runs


def _settings_of(run: Lengths) -> dict[str, Any]:
    """Return what has to be alike in runs; device and precision are their noise."""
    return {k: v for k, v in run.header.items() if k not in ('device', 'dtype')}


def lengths_of(ids: list[str], runs: list[Lengths]) -> NDArray[np.int64]:
    """Return [prompts, runs], tokens; ValueError for a prompt that a run lacks."""
    missing = next((i for i in ids if any(i not in run.rows for run in runs)), None)
    if missing is not None:
        raise ValueError(f'a length file lacks the prompt {missing!r}')
    return np.array([[run.rows[i]['n'] for run in runs] for i in ids], np.int64)


def read_states(arguments: argparse.Namespace, run: Lengths) -> StatesFile:
    """Read the states of the run's target."""
    if arguments.states is None:
        raise ValueError('the probe needs --states (timebill predictor states)')
    file = StatesFile.load(arguments.states)
    if file.target != run.header['target']:
        raise ValueError(
            f'{arguments.states} holds states of the target {file.target}, the lengths are of '
            f'{run.header["target"]}')
    return file


def read_variations(
    arguments: argparse.Namespace, own: StatesFile, run: Lengths
) -> list[tuple[StatesFile, Lengths]]:
    """Read the states and lengths of variations, in pairs of files."""
    paths = list(zip(arguments.more_states, arguments.more_lengths))
    if len(arguments.more_states) != len(arguments.more_lengths):
        raise ValueError('--more-states and --more-lengths go in pairs')
    found = [(StatesFile.load(states), read_lengths(lengths)) for states, lengths in paths]
    for (states, lengths), (path, _) in zip(found, paths):
        if states.target != own.target or lengths.header != run.header:
            raise ValueError(f'{path} or its lengths are of another target or other settings')
    return found


def variation_rows(
    found: Sequence[tuple[StatesFile, Lengths]], layer: int
) -> list[Rows]:
    """Return what a head on the prompts' states at ``layer`` learns from variations."""
    return [
        Rows(states.at(layer), lengths_of(states.ids, [run]), states.ids) for states, run in found]


def check_cap(card: Card, arguments: argparse.Namespace, run: Lengths) -> None:
    """Raise ValueError if a checkpoint's longest length is not the run's."""
    if card.cap != run.header['cap']:
        raise ValueError(
            f'{arguments.checkpoint} was trained with lengths up to {card.cap} tokens; '
            f'{arguments.lengths[0]} has the cap {run.header["cap"]}')


def head_training(chosen: dict[str, Any]) -> HeadTraining:
    """Return a head's training from the settings "train"."""
    names = ('hidden', 'dropout', 'input_noise', 'epochs')
    return HeadTraining(
        width=chosen['width'],
        n_folds=chosen['n_folds'],
        seed=chosen['seed'],
        spread=float(chosen['spread']),
        head=HeadConfig(**{name: chosen[name] for name in names}),
    )


def device_of(arguments: argparse.Namespace) -> str:
    """Return the device asked for; ValueError if it is not there."""
    import torch

    device: str = arguments.device
    if device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError('there is no CUDA device here; try --device cpu')
    return ('cuda' if torch.cuda.is_available() else 'cpu') if device == 'auto' else device


def directory_of(arguments: argparse.Namespace) -> Path:
    """Return where the target model lies; raises EngineError if it is not there."""
    from timebill_ros.engine.source import find_model

    return find_model(
        arguments.model, arguments.cache_dir / 'models', False, lambda text, fraction: None
    ).directory


def target_of(arguments: argparse.Namespace) -> Target:
    """Load the target model."""
    return load_target(directory_of(arguments), device_of(arguments), arguments.dtype)


def make_card(arguments: argparse.Namespace, runs: list[Lengths], width: int, kind: str) -> Card:
    """Return the card of a checkpoint to be trained."""
    from timebill_ros.engine.config import read_config

    config = read_config(directory_of(arguments))
    header = runs[0].header
    return Card(
        kind=kind,
        target=header['target'],
        vocab_size=config.vocab_size,
        d_model=config.d_model,
        width=width,
        cap=int(header['cap']),
        sampling={
            name: header[name]
            for name in ('temperature', 'top_p', 'top_k', 'repetition_penalty', 'dtype')
        },
        data={'prompts_file': arguments.prompts.name, 'runs': len(runs)},
        command=command_line(),
        commit=_commit(),
    )


def _commit() -> str:
    try:
        root = Path(__file__).resolve().parent
        return subprocess.run(
            ['git', 'rev-parse', '--short', 'HEAD'],
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ''


def command_line() -> str:
    """Return the command as it was given, paths without their directories."""
    after = sys.argv[sys.argv.index('predictor') + 1:] if 'predictor' in sys.argv else sys.argv[1:]
    return ' '.join(
        ['timebill predictor', *(Path(word).name if '/' in word else word for word in after)])


def progress(done: int, total: int) -> None:
    """Draw a bar on standard error."""
    width = 40
    filled = width * done // max(1, total)
    end = '\n' if done == total else ''
    sys.stderr.write(f'\r[{"#" * filled}{" " * (width - filled)}] {done}/{total}{end}')
    sys.stderr.flush()


def say(line: str) -> None:
    """Print a line on standard error."""
    print(line, file=sys.stderr, flush=True)
