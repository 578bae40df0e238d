# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill predictor tables``: every table of docs/length-predictor.md from files."""

import argparse
from datetime import datetime, timezone
import json
from pathlib import Path
import platform
from typing import Any, Callable

from timebill_ros.length_predictor import command_inputs as inputs
from timebill_ros.length_predictor import tables, training_tables
from timebill_ros.length_predictor.checkpoint import read_card
from timebill_ros.length_predictor.collect import Lengths, read_lengths
from timebill_ros.length_predictor.data import Prompt, read_prompts
from timebill_ros.length_predictor.material import Material, Table
from timebill_ros.length_predictor.predictions import Predictions
from timebill_ros.length_predictor.predictor import load_predictor
from timebill_ros.length_predictor.real_lengths import read_real_lengths, real_length_table
from timebill_ros.length_predictor.split import split_prompts
from timebill_ros.length_predictor.states_file import StatesFile
from timebill_ros.length_predictor.tables_markdown import markdown
from timebill_ros.length_predictor.train import HeadTraining

_DECIMALS = 4

MAKERS: dict[str, Callable[[Material], Table]] = {
    'comparison': tables.comparison,
    'refinement': tables.refinement,
    'training prompts': training_tables.training_prompts,
    'shortened': tables.shortened,
    'leave one out': training_tables.leave_one_out,
    'bucket widths': training_tables.bucket_widths,
    'layers': training_tables.layers,
}


def make_tables(
    arguments: argparse.Namespace, training: HeadTraining, command: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """
    Make the tables, write them as JSON and as Markdown, and return where they are.

    What is made is written at once: all of it takes a quarter of an hour on two cores. With
    ``arguments.only`` no more than those are made; the others stay as the file has them, and
    "again" says when and how those were.
    """
    if (arguments.real_lengths is None) != (arguments.real_states is None):
        raise ValueError('--real-lengths and --real-states go together')
    prompts = read_prompts(arguments.prompts)
    run = read_lengths(arguments.lengths[0])
    material = _material(arguments, prompts, run, training, say)
    card = material.probe.card
    made: dict[str, Any] = {
        'date': datetime.now(timezone.utc).strftime('%Y-%m-%d'), 'command': command,
        'machine': platform.processor() or platform.machine(), 'target': card.target,
        'sampling': card.sampling, 'cap': card.cap}
    if arguments.only and arguments.out.exists():
        before = json.loads(arguments.out.read_text(encoding='utf-8'))
        since = {'date': made['date'], 'machine': made['machine'], 'command': command}
        made = {**before, 'again': {
            **before.get('again', {}), **dict.fromkeys(arguments.only, since)}}
    for name, make in MAKERS.items():
        if not arguments.only or name in arguments.only:
            made[name] = make(material)
            if name == 'comparison':
                made['sources'] = _by_source(made[name])
            _write(made, arguments.out)
            say(name)
    if arguments.real_lengths is not None:
        made['real lengths'] = real_length_table(
            read_real_lengths(arguments.real_lengths), StatesFile.load(arguments.real_states))
        _write(made, arguments.out)
        say('real lengths')
    return {'json': str(arguments.out), 'markdown': str(_markdown_beside(arguments.out))}


def _material(
    arguments: argparse.Namespace, prompts: list[Prompt], run: Lengths,
    training: HeadTraining, say: Callable[[str], None],
) -> Material:
    target = str(run.header['target'])
    states = inputs.read_states(arguments, run)
    card = read_card(arguments.checkpoint)
    inputs.check_cap(card, arguments, run)
    varied = inputs.read_variations(arguments, states, run)
    return Material(
        prompts, split_prompts(prompts), run,
        [read_lengths(path, target) for path in arguments.lengths[1:]], states,
        load_predictor(arguments.checkpoint, target, card.vocab_size, card.d_model),
        [Predictions.load(path) for path in arguments.predictions or []], training, say,
        inputs.variation_rows(varied, card.state_layer))


def _by_source(comparison: Table) -> Table:
    """Take the calibration by source out of the rows; it is a table of its own."""
    return [
        {'predictor': row['predictor'], 'source': source, 'pit_below_0.95': share}
        for row in comparison
        for source, share in row.pop('pit_below_0.95_by_source', {}).items()]


def _write(made: dict[str, Any], out: Path) -> None:
    rounded = _rounded(made)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_json(rounded), encoding='utf-8')
    _markdown_beside(out).write_text(markdown(rounded), encoding='utf-8')


def _markdown_beside(out: Path) -> Path:
    return out.with_suffix('.md')


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DECIMALS)
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def _json(made: dict[str, Any]) -> str:
    """Return JSON with one row of a table a line."""
    parts = []
    for name, value in made.items():
        if isinstance(value, list):
            rows = ',\n'.join(f'    {json.dumps(row)}' for row in value)
            parts.append(f'  {json.dumps(name)}: [\n{rows}\n  ]')
        else:
            parts.append(f'  {json.dumps(name)}: {json.dumps(value)}')
    return '{\n' + ',\n'.join(parts) + '\n}\n'
