# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Variations of training prompts: more to learn from where prompts are few.

How long an answer is depends on every word of its prompt, so a slightly different prompt is a new
example. A variation is made of one training prompt by three edits: other numbers, options in
another order, a sentence left out, a sentence or some words of a prompt of the same kind.
"""

from collections import Counter, defaultdict
import random
import re
from typing import Optional, Sequence

from timebill_ros.length_predictor.data import Prompt
from timebill_ros.length_predictor.split import shingles, Split

_MARK = 'fresh-'                # how the id of a variation begins
_EDITS = ('numbers', 'options', 'leave out', 'sentence', 'words', 'sentence', 'numbers')
_EDITS_EACH, _ATTEMPTS = 3, 8
_LONGEST = 1300                 # characters of a prompt that is varied
_LENGTHS = range(21, 1500)      # characters of a variation
_MOST_ALIKE = 0.45              # Jaccard similarity to any held-out prompt; 0.5 is a near-duplicate
_NUMBER = re.compile(r'(?<![\w.,(])\d{1,6}(?![\w)])')
_OPTION = re.compile(r'\s*(\([A-Z]\)|-|[A-D][.)]) ?\S')
_OPTION_MARK = re.compile(r'^\s*(\([A-Z]\)|-|[A-D][.)]) ?')


def origin(prompt_id: str) -> str:
    """Return the id of the prompt that a variation was made of; of any other its own id."""
    return prompt_id.split('/', 1)[1] if prompt_id.startswith(_MARK) else prompt_id


def vary(prompts: Sequence[Prompt], split: Split, name: str) -> list[Prompt]:
    """
    Return up to one variation of each prompt that is not held out; seeded by ``name`` and the id.

    None is like a held-out prompt, and none is the same as a prompt or another variation.
    """
    held_out = _HeldOut([p.text for p in prompts if split.place[p.prompt_id] == 'held-out'])
    trained = [p for p in prompts if split.place[p.prompt_id] != 'held-out']
    kinds: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in trained:
        kinds[_kind(prompt)].append(prompt)
    known = {p.text for p in prompts}
    made = []
    for prompt in trained:
        if len(prompt.text) > _LONGEST:
            continue
        chance = random.Random(f'{name}{prompt.prompt_id}')
        text = _varied(prompt.text, kinds[_kind(prompt)], chance, held_out)
        if text is not None and text not in known:
            known.add(text)
            made.append(Prompt(f'{_MARK}{name}/{prompt.prompt_id}', prompt.source, text))
    return made


class _HeldOut:
    """Finds texts that are too like a held-out prompt."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._sizes = []
        self._with: dict[str, list[int]] = defaultdict(list)
        for number, text in enumerate(texts):
            found = shingles(text)
            self._sizes.append(len(found))
            for each in found:
                self._with[each].append(number)

    def is_like(self, text: str) -> bool:
        found = shingles(text)
        shared = Counter(number for each in found for number in self._with.get(each, ()))
        return any(count / (len(found) + self._sizes[number] - count) >= _MOST_ALIKE
                   for number, count in shared.items())


def _kind(prompt: Prompt) -> str:
    """Return what prompts of one template share: "p3/glue_mrpc_paraphrase", else the source."""
    if prompt.source in ('p3', 'bbh'):
        return re.sub(r'-?\d+$', '', prompt.prompt_id)
    return prompt.source


def _varied(
    text: str, like: list[Prompt], chance: random.Random, held_out: _HeldOut
) -> Optional[str]:
    for _ in range(_ATTEMPTS):
        changed = text
        for edit in chance.sample(_EDITS, _EDITS_EACH):
            other = chance.choice(like).text
            changed = _edited(edit, changed, other, chance)
        if changed != text and len(changed) in _LENGTHS and not held_out.is_like(changed):
            return changed
    return None


def _edited(edit: str, text: str, other: str, chance: random.Random) -> str:
    if edit == 'numbers':
        return _NUMBER.sub(lambda found: _other_number(found.group(), chance), text)
    if edit == 'options':
        return _reordered_options(text, chance)
    if edit == 'words':
        return _with_words_of(text, other, chance)
    pieces, others = _sentences(text), _sentences(other)
    if edit == 'leave out':
        if len(pieces) < 3:
            return text
        del pieces[chance.randrange(len(pieces) - 1)]       # the last one often asks
        return _joined(pieces) if '\n' in text else ' '.join(pieces)
    if len(pieces) < 2 or len(others) < 2:
        return text
    place = chance.randrange(len(pieces))
    theirs = min(len(others) - 1, max(0, place + chance.choice((-1, 0, 0, 0, 1))))
    pieces[place] = others[theirs]
    return _joined(pieces)


def _other_number(digits: str, chance: random.Random) -> str:
    if chance.random() >= 0.7:
        return digits
    number = int(digits)
    return str(max(1, round(number * chance.uniform(0.5, 1.8)))) if number > 0 else '0'


def _reordered_options(text: str, chance: random.Random) -> str:
    lines = text.split('\n')
    at = [row for row, line in enumerate(lines) if _OPTION.match(line)]
    if len(at) < 3:
        return text
    bodies = [_OPTION_MARK.sub('', lines[row]) for row in at]
    marks = [lines[row][:len(lines[row]) - len(body)] for row, body in zip(at, bodies)]
    chance.shuffle(bodies)
    for row, mark, body in zip(at, marks, bodies):
        lines[row] = mark + body
    return '\n'.join(lines)


def _with_words_of(text: str, other: str, chance: random.Random) -> str:
    """Put some longer lower-case words of another prompt in the place of such words."""
    words, others = text.split(' '), other.split(' ')
    if len(words) < 6 or len(others) < 6:
        return text
    for _ in range(max(1, len(words) // 12)):
        place, word = chance.randrange(len(words)), chance.choice(others)
        if all(each[:1].islower() and len(each) > 3 for each in (words[place], word)):
            words[place] = word
    return ' '.join(words)


def _sentences(text: str) -> list[str]:
    return re.split(r'(?<=[.!?\n]) +|(?<=\n)', text)


def _joined(pieces: list[str]) -> str:
    return ''.join(piece if piece.endswith('\n') else piece + ' ' for piece in pieces).strip()
