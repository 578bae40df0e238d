# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Makes config/quality/calibration.jsonl.gz: long prompts for ``timebill profile --quality``.

The passages are this package's own documentation and code, so that the set can be shipped under
the package's licence. Run it in the source tree; the set needs no update when the sources change.
"""

import gzip
import itertools
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / 'config' / 'quality' / 'calibration.jsonl.gz'
PASSAGE_CHARS = 22000       # more than 4,096 tokens
QUESTIONS = (
    'Summarise the text above in three sentences.',
    'Which of the things described above could fail, and how would one notice?',
    'Explain the most important number or name in the text above to a new colleague.',
    'List the main parts of the text above as bullet points.',
    'What would you ask the author of the text above?')
SOURCES = (
    ('docs', 'docs/*.md'), ('docs', 'README.md'), ('budget', 'timebill_ros/budget/*.py'),
    ('estimator', 'timebill_ros/time_estimator/*.py'), ('nodes', 'timebill_ros/nodes/*.py'),
    ('executor', 'timebill_ros/executor/*.py'))


def main() -> None:
    """Write the file."""
    texts: dict[str, str] = {}
    for name, pattern in SOURCES:
        files = sorted(ROOT.glob(pattern))
        texts[name] = texts.get(name, '') + '\n\n'.join(
            file.read_text(encoding='utf-8') for file in files)
    questions = itertools.cycle(QUESTIONS)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with gzip.GzipFile(OUT, 'wb', mtime=0) as packed:
        for number, (name, text) in itertools.product(range(3), texts.items()):
            if (number + 1) * PASSAGE_CHARS <= len(text):
                passage = text[number * PASSAGE_CHARS:(number + 1) * PASSAGE_CHARS]
                row = {'id': f'{name}-{number}', 'prompt': f'{passage}\n\n{next(questions)}'}
                packed.write((json.dumps(row) + '\n').encode())


if __name__ == '__main__':
    main()
