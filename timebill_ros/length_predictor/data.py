# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Prompt files and length files: JSON lines, gzipped or not."""

from dataclasses import dataclass
import gzip
import json
from pathlib import Path
from typing import Any, Iterator, Sequence
import zlib


@dataclass(frozen=True)
class Prompt:
    """One prompt to collect a length for."""

    prompt_id: str
    source: str
    text: str


def read_prompts(path: Path) -> list[Prompt]:
    """
    Read ``{"id", "prompt"[, "source"]}`` lines; the source defaults to the id up to a "/".

    Raises ValueError naming the line when one has no id or prompt, or an id comes twice, and for a
    file without prompts.
    """
    prompts: list[Prompt] = []
    seen = set()
    for number, row in enumerate(read_jsonl(path, may_be_cut_off=False), start=1):
        try:
            prompt = Prompt(
                str(row['id']),
                str(row.get('source') or str(row['id']).split('/')[0]),
                str(row['prompt']),
            )
        except KeyError as error:
            raise ValueError(f'{path}, line {number}: no field {error}') from error
        if not prompt.text.strip():
            raise ValueError(f'{path}, line {number}: the prompt is empty')
        if prompt.prompt_id in seen:
            raise ValueError(f'{path}, line {number}: the id {prompt.prompt_id!r} comes twice')
        seen.add(prompt.prompt_id)
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f'{path} holds no prompts')
    return prompts


def write_prompts(path: Path, prompts: Sequence[Prompt]) -> None:
    """Write what ``read_prompts`` reads, gzipped if the name ends so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == '.gz' else open
    with opener(path, 'wt', encoding='utf-8') as out:
        for each in prompts:
            row = {'id': each.prompt_id, 'source': each.source, 'prompt': each.text}
            out.write(json.dumps(row) + '\n')


def read_jsonl(path: Path, may_be_cut_off: bool = True) -> Iterator[dict[str, Any]]:
    """
    Yield the objects of a JSON lines file, gzipped if its name ends so.

    A last line that a crash has cut off is left out where ``may_be_cut_off``. Raises ValueError
    naming the file, and the line if it is one line's fault.
    """
    opener = gzip.open if path.suffix == '.gz' else open
    broken = 0
    try:
        with opener(path, 'rt', encoding='utf-8') as lines:
            for number, line in enumerate(lines, start=1):
                if broken:
                    break
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if isinstance(row, dict):
                    yield row
                else:
                    broken = 0 if not line.strip() else number
            else:
                broken = 0 if may_be_cut_off else broken
    except (UnicodeDecodeError, EOFError, zlib.error) as error:
        raise ValueError(f'{path} is not JSON lines: {error}') from error
    if broken:
        raise ValueError(f'{path}, line {broken}: not a JSON object')
