# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Where a response may end softly when time runs out: a sentence, a list item, balanced JSON.

Pure functions of the text so far. A response that does not fit in the time left goes on to the
last good place that still does; from there on, what was begun and cannot be finished is left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
import re

from timebill_ros.budget.landing_json import json_landing

SENTENCE, ITEM, LINE, JSON, WORD, NOTHING = 'sentence', 'item', 'line', 'json', 'word', 'nothing'
_UNITS = (SENTENCE, ITEM, LINE)
_LEAST_UNIT_TOKENS = 8      # a sentence or list item is taken to have at least so many
_LONGER_THAN_MEAN = 1.5     # and the next one so much more than they had on average
_MOST_GIVEN_UP = 0.05       # of what the response can become, for ending at a whole one
_FENCE = '```'
# A full stop after a digit may be a decimal point until something follows; one after a list's
# number never ends anything.
_SENTENCE_END = re.compile(
    r'(?:[!?…]+|(?<!\d)\.|(?<=\d)\.(?=\s))["\'”’)\]*_]*(?=\s|$)|[。！？]+[”’」』）]*')
_ABBREVIATION = re.compile(
    r'(?:^|[\s(])(?:[A-Za-z]|e\.g|i\.e|etc|vs|cf|approx|no|fig|dr|mr|mrs|ms|prof|st)\.$',
    re.IGNORECASE)
_NUMBERED = re.compile(r'(?:^|\n)[ \t]*\d+\.$')
_ITEM_LINE = re.compile(r'[ \t]*(?:[-*+•]|\d+[.)])[ \t]+\S')


@dataclass(frozen=True)
class Landing:
    """A place to end at."""

    end: int            # characters of the text that stay
    closing: str        # what balances it: brackets, quotes, a code fence
    kind: str           # SENTENCE, ITEM, LINE, JSON, WORD or NOTHING

    def apply(self, text: str) -> str:
        """Return the response that ends there."""
        return text[:self.end] + self.closing


def landing_point(text: str) -> Landing:
    """Return the last good place in the text; at worst the end of its last whole word."""
    opening = _json_start(text)
    if opening is not None:
        balanced = json_landing(text[opening:])
        if balanced is not None:
            fence = '\n' + _FENCE if _fenced(text[:opening + balanced.end]) else ''
            return Landing(opening + balanced.end, balanced.closing + fence, JSON)
    best = max(_ends(text), default=None)
    if best is not None:
        end, kind = best
        return Landing(end, '\n' + _FENCE if _fenced(text[:end]) else '', kind)
    words = text.rstrip()
    if words == text and ' ' in words.lstrip():
        words = words[:words.rindex(' ')].rstrip()      # the last word may not be whole
    return Landing(len(words), '', WORD) if words else Landing(0, '', NOTHING)


def land(text: str, tokens_left: int, n_generated: int) -> Landing | None:
    """
    Return where to end now; None = go on.

    ``tokens_left`` more tokens fit in the time that is left, in the worst case; ``n_generated``
    there are. Ends at a sentence or item when the next one is not likely to fit, unless that gives
    up more than a twentieth of what fits: then it goes on, and what comes of the next is left out
    if it is not whole in time. Ends JSON once it is complete, and wherever it stands when no token
    fits.
    """
    point = landing_point(text)
    if tokens_left <= 0:
        return point
    if point.kind == JSON:
        return point if not point.closing.strip('`\n') and _json_done(text) else None
    if point.kind not in _UNITS or text[point.end:].strip():
        return None
    units = len(set(_ends(text)))
    next_tokens = max(_LEAST_UNIT_TOKENS, _LONGER_THAN_MEAN * n_generated / units)
    most_tokens = _MOST_GIVEN_UP * (n_generated + tokens_left)
    return point if tokens_left < min(next_tokens, most_tokens) else None


def _ends(text: str) -> Iterator[tuple[int, str]]:
    """Yield the ends of whole sentences (outside of code), list items and lines of code."""
    fenced, at = False, 0
    for line in text.splitlines(keepends=True):
        body = line.rstrip()
        whole = line.endswith('\n')
        is_fence = body.lstrip().startswith(_FENCE)
        if is_fence:
            if fenced and whole:
                yield at + len(body), LINE
            fenced = not fenced
        elif fenced:
            if whole and body:
                yield at + len(body), LINE
        else:
            for match in _SENTENCE_END.finditer(line):
                before = line[:match.end()]
                if not (_ABBREVIATION.search(before) or _NUMBERED.search(before)):
                    yield at + match.end(), SENTENCE
            if whole and _ITEM_LINE.match(body):
                yield at + len(body), ITEM
        at += len(line)


def _fenced(text: str) -> bool:
    """Tell whether the text ends inside a code block."""
    return text.count(_FENCE) % 2 == 1


def _json_start(text: str) -> int | None:
    """Return where a response that is nothing but JSON begins; None = it is something else."""
    start = len(text) - len(text.lstrip())
    if text.startswith(_FENCE, start):
        newline = text.find('\n', start)
        if newline < 0 or text[start + len(_FENCE):newline].strip() not in ('', 'json'):
            return None
        start = newline + 1 + len(text[newline + 1:]) - len(text[newline + 1:].lstrip())
    return start if text[start:start + 1] in ('{', '[') else None


def _json_done(text: str) -> bool:
    """Tell whether the outermost bracket of a JSON response is closed."""
    balanced = json_landing(text[_json_start(text) or 0:])
    return balanced is not None and balanced.complete
