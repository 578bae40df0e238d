# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Prompts of LongBench (arXiv 2308.14508) from a file that is not part of the package.

JSON lines, gzipped or not: ``id``, ``task`` (LongBench's name of the data set), ``prompt`` (its
template filled in) and ``gold`` (a list of right answers, or for classes an object with ``answers``
and ``all_classes``). Caps and metrics are those of LongBench's own configuration. Unlike there,
every prompt goes through the chat template of the model, as every query of the node does.
"""

import os
from pathlib import Path
from typing import Any

from timebill_ros.experiments.tasks import Item
from timebill_ros.length_predictor.data import read_jsonl

FILE = 'longbench.jsonl.gz'
DATA_VARIABLE = 'TIMEBILL_DATA'
HOW_TO_GET = (
    f'LongBench is not part of the package. Give the folder that holds {FILE} with --data, or in '
    f'${DATA_VARIABLE}; docs/experiments.md says how to make that file from the data set '
    '(https://github.com/THUDM/LongBench). Without it the generated sets are used alone.')

# group, metric and cap on the response (dataset2metric and dataset2maxlen of LongBench)
_TASKS = {
    'narrativeqa': ('single-document QA', 'f1', 128),
    'qasper': ('single-document QA', 'f1', 128),
    'multifieldqa_en': ('single-document QA', 'f1', 64),
    'hotpotqa': ('multi-document QA', 'f1', 32),
    '2wikimqa': ('multi-document QA', 'f1', 32),
    'musique': ('multi-document QA', 'f1', 32),
    'gov_report': ('summary', 'rouge-l', 512),
    'qmsum': ('summary', 'rouge-l', 512),
    'multi_news': ('summary', 'rouge-l', 512),
    'trec': ('few-shot', 'class', 64),
    'triviaqa': ('few-shot', 'f1', 32),
    'samsum': ('few-shot', 'rouge-l', 128),
    'passage_count': ('synthetic', 'count', 32),
    'passage_retrieval_en': ('synthetic', 'retrieval', 32),
    'lcc': ('code', 'edit', 64),
    'repobench-p': ('code', 'edit', 64),
}
# LongBench scores the first line alone of these.
_FIRST_LINE = ('trec', 'triviaqa', 'samsum')
# English text has more characters than this per token; a prompt with more cannot fit.
CHARACTERS_PER_TOKEN = 4.0


def data_file(folder: Path | None) -> Path | None:
    """Return the file in ``folder``, or else in $TIMEBILL_DATA or ./data; None = nowhere."""
    if folder is not None:
        if not (folder / FILE).is_file():
            raise FileNotFoundError(f'{folder} holds no {FILE}. {HOW_TO_GET}')
        return folder / FILE
    path = Path(os.environ.get(DATA_VARIABLE) or 'data') / FILE
    return path if path.is_file() else None


def read(path: Path, max_prompt_tokens: int) -> list[Item]:
    """Return the items whose prompts may fit; the engine refuses what in the end does not."""
    longest = max_prompt_tokens * CHARACTERS_PER_TOKEN
    return [_item(row) for row in read_jsonl(path)
            if row['task'] in _TASKS and len(row['prompt']) <= longest]


def _item(row: dict[str, Any]) -> Item:
    group, metric, cap = _TASKS[row['task']]
    gold = row['gold']
    answers = gold['answers'] if isinstance(gold, dict) else gold
    classes = gold['all_classes'] if isinstance(gold, dict) else []
    return Item(
        f'longbench/{row["id"]}', f'LongBench {group}', metric, row['prompt'], tuple(answers), cap,
        tuple(classes), row['task'] in _FIRST_LINE)
