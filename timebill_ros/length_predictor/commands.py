# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The steps of ``timebill predictor``, as functions of its arguments and settings."""

import argparse
from pathlib import Path
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from timebill_ros.length_predictor.checkpoint import Card, load_checkpoint, save_checkpoint
from timebill_ros.length_predictor.collect import collect as collect_lengths
from timebill_ros.length_predictor.collect import CollectConfig, Lengths, read_lengths
from timebill_ros.length_predictor.data import Prompt, read_prompts, write_prompts
from timebill_ros.length_predictor.fit_head import HeadConfig
from timebill_ros.length_predictor.metrics import evaluate_distribution, evaluate_points
from timebill_ros.length_predictor.predictor import (
    head_tensors,
    length_features,
    load_predictor,
    refine_features,
)
from timebill_ros.length_predictor.split import Split, split_prompts
from timebill_ros.length_predictor.states_file import collect_states, StatesFile
from timebill_ros.length_predictor.target import load_target, Target
from timebill_ros.length_predictor.train import (
    HeadTraining,
    held_out_rows,
    label_noise,
    measure,
    Rows,
    train_head,
)
from timebill_ros.length_predictor.vary import vary as vary_prompts
from timebill_ros.query import Sampling


def collect(arguments: argparse.Namespace, settings: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """Collect lengths into a file."""
    chosen = settings['collect']
    penalty = arguments.repetition_penalty or chosen['repetition_penalty']
    config = CollectConfig(
        cap=chosen['cap'],
        sampling=Sampling(temperature=chosen['temperature'], repetition_penalty=penalty),
        max_rows=arguments.max_rows or chosen['max_rows'],
        max_batch_tokens=chosen['max_batch_tokens'],
        keep_tokens=arguments.keep_tokens,
    )
    added = collect_lengths(
        _target(arguments), read_prompts(arguments.prompts), arguments.out, config, _progress
    )
    return {'added': added, 'file': str(arguments.out)}


def vary(arguments: argparse.Namespace, settings: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """Write variations of the prompts that are not held out."""
    prompts = read_prompts(arguments.prompts)
    made = vary_prompts(prompts, split_prompts(prompts), arguments.name)
    write_prompts(arguments.out, made)
    return {'prompts': len(made), 'file': str(arguments.out)}


def states(arguments: argparse.Namespace, settings: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """Read the states that a probe is trained on."""
    chosen = settings['states']
    target = _target(arguments)
    lengths = read_lengths(arguments.lengths, target.key) if arguments.lengths else None
    decode_layer = chosen['layer']
    file = collect_states(
        target,
        read_prompts(arguments.prompts),
        lengths,
        sorted({*chosen['layers'], decode_layer}),
        decode_layer,
        chosen['steps'] if lengths else [],
        _progress,
    )
    file.save(arguments.out)
    return {'prompts': len(file.ids), 'decode_rows': len(file.decode), 'file': str(arguments.out)}


def train(arguments: argparse.Namespace, settings: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """Train one predictor and write its checkpoint."""
    prompts = read_prompts(arguments.prompts)
    split = split_prompts(prompts)
    runs = _runs(arguments.lengths)
    if arguments.kind in ('slm', 'regression', 'proxy', 's3'):
        return _train_classifier(arguments, settings, prompts, split, runs)
    if arguments.out is None:
        raise ValueError('say with --out where the checkpoint is to go')
    return _train_head_kind(arguments, settings, prompts, split, runs)


def evaluate(arguments: argparse.Namespace, settings: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """Measure a checkpoint on the held-out prompts, one prediction at a time."""
    card, _ = load_checkpoint(arguments.checkpoint)
    prompts = read_prompts(arguments.prompts)
    split = split_prompts(prompts)
    runs = _runs(arguments.lengths)
    directory = _directory(arguments) if card.kind == 'slm' else None
    predictor = load_predictor(
        arguments.checkpoint,
        runs[0].header['target'],
        card.vocab_size,
        card.d_model,
        directory,
        _device(arguments.device),
    )
    _check_cap(card, arguments, runs[0])
    file = _states_of(arguments, runs[0]) if predictor.state_layer else None
    states = file.at(predictor.state_layer) if file else None
    row_of = {prompt_id: row for row, prompt_id in enumerate(file.ids)} if file else {}
    target = _target(arguments) if card.kind == 'slm' else None
    kept = [
        p
        for p in prompts
        if split.place[p.prompt_id] == 'held-out'
        and p.prompt_id in runs[0].rows
        and (file is None or p.prompt_id in row_of)
    ]
    pmf, seconds = [], []
    for prompt in kept:
        n_prompt = runs[0].rows[prompt.prompt_id]['n_prompt']
        # without a tokenizer at hand only the number of prompt tokens is known, and needed
        ids = target.prompt_ids([prompt.text])[0] if target else [0] * n_prompt
        state = states[row_of[prompt.prompt_id]] if states is not None else None
        start = time.perf_counter()
        distribution = predictor.predict(ids, state)
        seconds.append(time.perf_counter() - start)
        pmf.append(distribution.pmf)
    lengths = np.array([runs[0].rows[p.prompt_id]['n'] for p in kept])
    result = evaluate_distribution(np.stack(pmf), lengths, [p.source for p in kept], card.width)
    result['ms_per_prediction'] = 1e3 * float(np.median(seconds))
    return result


def tables(arguments: argparse.Namespace, settings: Dict[str, Any]) -> Optional[Dict[str, Any]]:
    """Make every table of the documentation."""
    from timebill_ros.length_predictor.tables_command import make_tables

    run = read_lengths(arguments.lengths[0])
    _states_of(arguments, run)
    _check_cap(load_checkpoint(arguments.checkpoint)[0], arguments, run)
    command = ' '.join(['timebill predictor', *_shown(sys.argv)])
    return make_tables(arguments, _head_training(settings['train']), command, _say)


def _train_head_kind(
    arguments: argparse.Namespace,
    settings: Dict[str, Any],
    prompts: List[Prompt],
    split: Split,
    runs: List[Lengths],
) -> Dict[str, Any]:
    chosen = settings['train']
    config = _head_training(chosen)
    sources = {p.prompt_id: p.source for p in prompts}
    cap = int(runs[0].header['cap'])
    card = _card(arguments, runs, config.width, arguments.kind)
    if arguments.kind == 'probe':
        file = _states_of(arguments, runs[0])
        card.state_layer, card.d_model = file.decode_layer, file.prompt.shape[2]
        rows = Rows(file.at(file.decode_layer), _lengths_of(file.ids, runs), file.ids)
        varied = _more(arguments, file, runs[0])
    else:
        varied = []
        ids = [p.prompt_id for p in prompts if all(p.prompt_id in run.rows for run in runs)]
        n_prompt = np.array([runs[0].rows[i]['n_prompt'] for i in ids])
        n_prompt = n_prompt if arguments.kind == 'length' else np.ones_like(n_prompt)
        rows = Rows(length_features(n_prompt), _lengths_of(ids, runs), ids)
        config.head.input_noise, config.head.dropout = 0.0, 0.0
    more = [Rows(states.at(file.decode_layer), _lengths_of(states.ids, [run]), states.ids)
            for states, run in varied]
    trained = train_head(rows, split, cap, config, _say, more)
    card.metrics['held_out'] = measure(trained, rows, split, sources)
    card.metrics['ratios'] = trained.ratios
    if rows.lengths.shape[1] > 1:
        held_out = rows.take(held_out_rows(rows.prompt_ids, split))
        card.metrics['label_noise'] = dict(
            zip(('correlation', 'mae'), label_noise(held_out.lengths))
        )
    tensors = head_tensors('', trained.head, trained.calibration)
    if arguments.kind == 'probe' and len(file.decode):
        card.refine_layer = file.decode_layer
        remaining = remaining_rows(file, runs[0])
        again = _head_training({**chosen, **settings['refine']})
        refined = train_head(
            remaining, split, cap, again, _say,
            [remaining_rows(states, run) for states, run in varied if len(states.decode)])
        card.metrics['refined'] = measure(refined, remaining, split)
        tensors.update(head_tensors('refine.', refined.head, refined.calibration))
    card.data['prompts'] = len(rows.prompt_ids)
    card.data['variations'] = sum(len(each.prompt_ids) for each in more)
    save_checkpoint(arguments.out, card, tensors)
    return card.metrics


def _head_training(chosen: Dict[str, Any]) -> HeadTraining:
    names = ('hidden', 'dropout', 'input_noise', 'epochs')
    return HeadTraining(
        width=chosen['width'],
        n_folds=chosen['n_folds'],
        seed=chosen['seed'],
        spread=float(chosen['spread']),
        head=HeadConfig(**{name: chosen[name] for name in names}),
    )


def remaining_rows(file: StatesFile, run: Lengths) -> Rows:
    """Return the rows that refinement learns from; the cap stays the cap."""
    cap = int(run.header['cap'])
    ids = [file.ids[row] for row in file.decode_row]
    whole = np.array([run.rows[i]['n'] for i in ids])
    # an answer that reaches the cap keeps the cap's class, whatever remains of it
    remaining = np.where(whole >= cap, cap, whole - file.decode_step)
    return Rows(
        refine_features(
            file.decode, file.decode_step, file.at(file.decode_layer)[file.decode_row],
        ), remaining[:, None], ids
    )


def _train_classifier(
    arguments: argparse.Namespace,
    settings: Dict[str, Any],
    prompts: List[Prompt],
    split: Split,
    runs: List[Lengths],
) -> Dict[str, Any]:
    from timebill_ros.length_predictor import train_classifier as training
    from timebill_ros.length_predictor.fit import FitConfig

    kind = arguments.kind
    chosen = settings['baselines' if kind in ('proxy', 's3') else 'slm']
    shared = settings['train']
    names = ('n_layers', 'rank', 'max_prompt_tokens', 'encoder')
    fit_names = ('epochs', 'batch_rows', 'learning_rate')
    config = training.ClassifierTraining(
        width=shared['width'],
        fit=FitConfig(
            seed=shared['seed'], **{n: chosen[n] for n in fit_names if n in chosen}),
        **{name: chosen[name] for name in names if name in chosen},
    )
    if kind == 'regression':
        config.n_layers = settings['regression']['n_layers']
    kept = [p for p in prompts if all(p.prompt_id in run.rows for run in runs)]
    lengths = _lengths_of([p.prompt_id for p in kept], runs)
    data = training.Data(kept, lengths, int(runs[0].header['cap']), split)
    if kind == 'slm':
        if arguments.out is None:
            raise ValueError('say with --out where the checkpoint is to go')
        said, tensors = training.train_slm(_target(arguments), data, config, _say)
        card = _card(arguments, runs, config.width, kind)
        card.n_layers, card.rank = config.n_layers, config.rank
        card.max_prompt_tokens = config.max_prompt_tokens
        card.data['prompts'] = len(kept)
        held_out = data.rows('held-out')
        card.metrics['held_out'] = evaluate_distribution(
            said.pmf(), lengths[held_out, 0], [kept[i].source for i in held_out], card.width)
        save_checkpoint(arguments.out, card, tensors)
        metrics = card.metrics
    elif kind == 'regression':
        said = training.train_regression(_target(arguments), data, config, _say)
    else:
        said = training.train_baseline(kind, _device(arguments.device), data, config, _say)
    if arguments.predictions is not None:
        said.save(arguments.predictions)
    if kind != 'slm':
        truth = lengths[data.rows('held-out'), 0]
        metrics = {n: evaluate_points(v, v, truth) for n, v in said.points.items()}
    return metrics


def _card(arguments: argparse.Namespace, runs: List[Lengths], width: int, kind: str) -> Card:
    from timebill_ros.engine.config import read_config

    config = read_config(_directory(arguments))
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
        command=' '.join(['timebill predictor', *_shown(sys.argv)]),
        commit=_commit(),
    )


def _shown(argv: List[str]) -> List[str]:
    """Return the arguments after "predictor", paths without their directories."""
    after = argv[argv.index('predictor') + 1 :] if 'predictor' in argv else argv[1:]
    return [Path(word).name if '/' in word else word for word in after]


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


def _runs(paths: List[Path]) -> List[Lengths]:
    runs = [read_lengths(path) for path in paths]
    for path, run in zip(paths, runs):
        same = {k: v for k, v in run.header.items() if k not in ('device', 'dtype')}
        first = {k: v for k, v in runs[0].header.items() if k not in ('device', 'dtype')}
        if same != first:
            raise ValueError(f'{path} was collected with other settings than {paths[0]}')
    return runs


def _lengths_of(ids: List[str], runs: List[Lengths]) -> 'np.ndarray[Any, np.dtype[np.int64]]':
    missing = next((i for i in ids if any(i not in run.rows for run in runs)), None)
    if missing is not None:
        raise ValueError(f'a length file lacks the prompt {missing!r}')
    return np.array([[run.rows[i]['n'] for run in runs] for i in ids], np.int64)


def _more(
    arguments: argparse.Namespace, own: StatesFile, run: Lengths
) -> List[Tuple[StatesFile, Lengths]]:
    """Return the states and lengths of variations, in pairs of files."""
    paths = list(zip(arguments.more_states, arguments.more_lengths))
    if len(arguments.more_states) != len(arguments.more_lengths):
        raise ValueError('--more-states and --more-lengths go in pairs')
    found = [(StatesFile.load(states), read_lengths(lengths)) for states, lengths in paths]
    for (states, lengths), (path, _) in zip(found, paths):
        if states.target != own.target or lengths.header != run.header:
            raise ValueError(f'{path} or its lengths are of another target or other settings')
    return found


def _check_cap(card: Card, arguments: argparse.Namespace, run: Lengths) -> None:
    if card.cap != run.header['cap']:
        raise ValueError(
            f'{arguments.checkpoint} was trained with lengths up to {card.cap} tokens; '
            f'{arguments.lengths[0]} has the cap {run.header["cap"]}')


def _states_of(arguments: argparse.Namespace, run: Lengths) -> StatesFile:
    if arguments.states is None:
        raise ValueError('the probe needs --states (timebill predictor states)')
    file = StatesFile.load(arguments.states)
    if file.target != run.header['target']:
        raise ValueError(
            f'{arguments.states} holds states of the target {file.target}, the lengths are of '
            f'{run.header["target"]}')
    return file


def _device(device: str) -> str:
    import torch

    if device.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError('there is no CUDA device here; try --device cpu')
    return ('cuda' if torch.cuda.is_available() else 'cpu') if device == 'auto' else device


def _directory(arguments: argparse.Namespace) -> Path:
    from timebill_ros.engine.source import find_model

    return find_model(
        arguments.model, arguments.cache_dir / 'models', False, lambda text, fraction: None
    ).directory


def _target(arguments: argparse.Namespace) -> Target:
    return load_target(_directory(arguments), _device(arguments.device), arguments.dtype)


def _progress(done: int, total: int) -> None:
    width = 40
    filled = width * done // max(1, total)
    end = '\n' if done == total else ''
    sys.stderr.write(f'\r[{"#" * filled}{" " * (width - filled)}] {done}/{total}{end}')
    sys.stderr.flush()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
