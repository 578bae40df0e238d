# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Prompt files and length files: JSON lines, gzipped or not."""

from dataclasses import dataclass
import gzip
import json
from pathlib import Path
from typing import Any, Dict, Iterator, List


@dataclass(frozen=True)
class Prompt:
    """One prompt to collect a length for."""

    prompt_id: str
    source: str
    text: str


def read_prompts(path: Path) -> List[Prompt]:
    """
    Read ``{"id", "prompt"[, "source"]}`` lines; the source defaults to the id up to a "/".

    Raises ValueError naming the line when one has no id or prompt, or an id comes twice.
    """
    prompts: List[Prompt] = []
    seen = set()
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            prompt = Prompt(
                str(row['id']),
                str(row.get('source') or str(row['id']).split('/')[0]),
                str(row['prompt']),
            )
        except KeyError as error:
            raise ValueError(f'{path}, line {number}: no field {error}') from error
        if prompt.prompt_id in seen:
            raise ValueError(f'{path}, line {number}: the id {prompt.prompt_id!r} comes twice')
        seen.add(prompt.prompt_id)
        prompts.append(prompt)
    return prompts


def read_jsonl(path: Path) -> Iterator[Dict[str, Any]]:
    """Yield the objects of a JSON lines file; only a last line may be cut off, and is left out."""
    opener = gzip.open if path.suffix == '.gz' else open
    with opener(path, 'rt', encoding='utf-8') as lines:
        broken = None
        for number, line in enumerate(lines, start=1):
            if broken is not None:
                raise ValueError(f'{path}, line {broken}: not valid JSON')
            try:
                row = json.loads(line)
            except ValueError:
                broken = number
                continue
            yield row
