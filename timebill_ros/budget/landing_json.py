# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How JSON that was broken off becomes JSON: cut after its last whole value, close what is open."""

from dataclasses import dataclass
import re

_SCALAR = re.compile(r'(?:-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)(?=[\s,\]}])')
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_CLOSE = {'{': '}', '[': ']'}
# What may come next.
_VALUE, _KEY, _COLON, _COMMA = 'value', 'key', 'colon', 'comma'


@dataclass(frozen=True)
class Balanced:
    """Where JSON can be cut, and what then closes it."""

    end: int
    closing: str
    complete: bool      # nothing was open


class _Reader:
    """Reads JSON from the left and remembers the last places at which it could be closed."""

    def __init__(self) -> None:
        """Start before the first bracket."""
        self.stack: list[str] = []
        self.next = _VALUE
        self.safe: Balanced | None = None
        self.whole_element: Balanced | None = None      # of an outermost array

    def value_ended(self, end: int) -> None:
        """Note that a value is whole."""
        self.next = _COMMA
        self._note(end)
        if self.stack == ['[']:
            self.whole_element = self.safe

    def opened(self, bracket: str, end: int) -> None:
        """Note an opening bracket; an empty container is a value."""
        self.stack.append(bracket)
        self.next = _KEY if bracket == '{' else _VALUE
        self._note(end)

    def _note(self, end: int) -> None:
        closing = ''.join(_CLOSE[bracket] for bracket in reversed(self.stack))
        self.safe = Balanced(end, closing, not self.stack)


def json_landing(text: str) -> Balanced | None:
    """
    Return where JSON that begins with a bracket may end; None if it is not JSON.

    An outermost array ends after its last whole element, so that no element lacks fields;
    everything else after its last whole value.
    """
    reader, at = _Reader(), 0
    while at < len(text):
        char = text[at]
        if char.isspace():
            at += 1
            continue
        after = _read(reader, text, at, char)
        if after is None:
            break           # broken off inside a string or scalar
        if after < 0:
            return None
        at = after
        if not reader.stack:
            return reader.safe
    return reader.whole_element or reader.safe


def _read(reader: _Reader, text: str, at: int, char: str) -> int | None:
    """Read one token; returns where the next begins, None = it is not whole, -1 = no JSON."""
    inside = reader.stack[-1] if reader.stack else ''
    if char in _CLOSE and reader.next == _VALUE:
        reader.opened(char, at + 1)
        return at + 1
    if inside and char == _CLOSE[inside]:
        if reader.next in (_COLON,) or text[:at].rstrip()[-1:] in (',', ':'):
            return -1
        reader.stack.pop()
        reader.value_ended(at + 1)
        return at + 1
    if char == ',' and inside and reader.next == _COMMA:
        reader.next = _KEY if inside == '{' else _VALUE
        return at + 1
    if char == ':' and reader.next == _COLON:
        reader.next = _VALUE
        return at + 1
    if char == '"' and reader.next in (_KEY, _VALUE):
        return _string(reader, text, at)
    if reader.next == _VALUE and inside:
        match = _SCALAR.match(text, at)
        if match:
            reader.value_ended(match.end())
            return match.end()
        return None if re.fullmatch(r'[-+.\w]*', text[at:]) else -1
    return -1


def _string(reader: _Reader, text: str, at: int) -> int | None:
    match = _STRING.match(text, at)
    if match is None:
        return None
    if reader.next == _KEY:
        reader.next = _COLON
    else:
        reader.value_ended(match.end())
    return match.end()
