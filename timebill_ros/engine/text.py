# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Text to tokens through the model's chat template, and tokens back to text as they come."""

from pathlib import Path
from typing import Callable, Sequence

from timebill_ros.engine.errors import EngineError, ModelError, PromptRefused
from timebill_ros.query import Turn

_INCOMPLETE = '\ufffd'       # what a decoder writes for a character that is not whole yet
_MAX_PENDING_TOKENS = 8      # a character has at most 4 bytes; what waits longer is none

# A prompt with more characters per token of the limit than this is looked at by its beginning; with
# so many times the limit it is too long, though its last word was cut and may have other tokens.
_LONG_CHARACTERS = 8
_FAR_BEYOND = 1.25


class TextCodec:
    """
    A tokenizer with its chat template.

    Only calls that do not change the tokenizer are made, so that one thread may encode while
    another decodes.
    """

    def __init__(self, directory: Path) -> None:
        """Load the tokenizer of a checkpoint; raises ModelError if it has none that we can use."""
        from transformers import AutoTokenizer
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False)
        except Exception as error:      # the library raises whatever its parsers do
            raise ModelError(f'{directory}: its tokenizer cannot be loaded: {error}') from error
        if not getattr(tokenizer, 'is_fast', False):
            raise ModelError(f'{directory}: its tokenizer has no fast form (tokenizer.json)')
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self.has_chat_template = bool(tokenizer.chat_template)

    def encode_chat(self, messages: Sequence[Turn], limit: int = 0) -> list[int]:
        """
        Return a conversation's ids up to where the answer starts.

        Raises PromptRefused where the model's chat template refuses it, EngineError for text that
        is none.
        Of one that is far beyond a ``limit`` only the beginning is encoded, which is more than
        ``limit`` ids too: a megabyte takes seconds in which nobody else is listened to.
        """
        text = self._render(messages) if self.has_chat_template else plain_prompt(messages)
        try:
            return self._encode_within(text, limit, special=not self.has_chat_template)
        except Exception as error:      # the library raises whatever its parsers do
            raise EngineError(f'the prompt cannot be turned into tokens: {error}') from error

    def _render(self, messages: Sequence[Turn]) -> str:
        """Return a conversation as the chat template writes it; raises PromptRefused."""
        try:
            return self._apply_template(messages)
        except Exception as error:      # a template is a program that came with the model
            field = 'prompt or messages'
            if len(messages) > 1 and messages[0].role == 'system' and self._takes(messages[1:]):
                field = 'system_prompt or messages[0].role = system'
            raise PromptRefused(
                f"{field}: the model's chat template refuses it: {error}") from error

    def _takes(self, messages: Sequence[Turn]) -> bool:
        try:
            self._apply_template(messages)
        except Exception:
            return False
        return True

    def _apply_template(self, messages: Sequence[Turn]) -> str:
        return str(self._tokenizer.apply_chat_template(
            [{'role': turn.role, 'content': turn.content} for turn in messages],
            add_generation_prompt=True, tokenize=False))

    def _encode_within(self, text: str, limit: int, special: bool = False) -> list[int]:
        n_characters = _LONG_CHARACTERS * limit
        if 0 < n_characters < len(text):
            ids = self.encode(text[:n_characters], special)
            if len(ids) > _FAR_BEYOND * limit:
                return ids
        return self.encode(text, special)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Return the ids of a text; ``special`` adds what the tokenizer puts around a text."""
        # not ``encode``, which holds Python's lock: the model would stand still as long
        encoded, = self._backend.encode_batch([text], add_special_tokens=special)
        return list(encoded.ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids without special tokens; bytes that are no character are U+FFFD."""
        return str(self._backend.decode(ids, skip_special_tokens=True))


def plain_prompt(messages: Sequence[Turn]) -> str:
    """Return a conversation as plain text, for models without a chat template."""
    turns = [f'{turn.role.capitalize()}: {turn.content}' for turn in messages]
    return '\n\n'.join([*turns, 'Assistant:'])


class Detokenizer:
    """
    Turns one response's tokens into text as they come, whole characters only.

    A token's text depends on its neighbours (bytes of one character, spaces between words), so a
    few tokens before it are decoded along with it; how many does not grow with the response.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        """Start a response; ``decode`` as ``TextCodec.decode``."""
        self._decode = decode
        self._context: list[int] = []     # tokens whose text is out, kept for what follows them
        self._pending: list[int] = []     # tokens whose text is not out yet

    def push(self, token: int) -> str:
        """Take the next token; returns the text that it completes."""
        self._pending.append(token)
        return self._text(force=len(self._pending) >= _MAX_PENDING_TOKENS)

    def finish(self) -> str:
        """Return what is left at the end of the response, less a character cut in half there."""
        return self._text(force=True).rstrip(_INCOMPLETE) if self._pending else ''

    def _text(self, force: bool) -> str:
        known = self._decode(self._context)
        text = self._decode(self._context + self._pending)
        if not text.startswith(known):     # not to be told apart from the context: hold it
            known = known[:_common_prefix(known, text)] if force else text
        if (text.endswith(_INCOMPLETE) or len(text) <= len(known)) and not force:
            return ''
        self._context, self._pending = self._pending, []
        return text[len(known):]


def _common_prefix(a: str, b: str) -> int:
    length = 0
    while length < min(len(a), len(b)) and a[length] == b[length]:
        length += 1
    return length


class StopStrings:
    """
    Ends a text where one of some strings appears, whatever borders the text arrives in.

    Text that may be the start of a stop string is held back until it is known not to be.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        """Take the stop strings; none may be empty."""
        self._stop = list(stop)
        self._held = ''
        self.found = False

    def push(self, text: str) -> str:
        """Take new text; returns what may be shown. After ``found`` there is no more."""
        if not self._stop:
            return text
        text = self._held + text
        ends = [_first_end(text, stop) for stop in self._stop if stop in text]
        if ends:
            # the one that is complete first, as if the text came character by character; of those
            # the longest
            end, length = min(ends, key=lambda pair: (pair[0], -pair[1]))
            self.found, self._held = True, ''
            return text[:end - length]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep:]
        return text[:len(text) - keep]

    def finish(self) -> str:
        """Return what was held back: the text is over, so it starts no stop string any more."""
        held, self._held = self._held, ''
        return held


def _first_end(text: str, stop: str) -> tuple[int, int]:
    return text.index(stop) + len(stop), len(stop)


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of ``text`` that is a proper start of ``stop``."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0


class ResponseText:
    """The text of one response: tokens in, showable text out, with stop strings."""

    def __init__(self, codec: TextCodec, stop: Sequence[str]) -> None:
        """Start a response."""
        self._detokenizer = Detokenizer(codec.decode)
        self._stop = StopStrings(stop)
        self.text = ''                   # everything given out so far

    @property
    def stopped(self) -> bool:
        """Tell whether a stop string has appeared."""
        return self._stop.found

    def push(self, token: int) -> str:
        """Take a token (not an end token); returns the new text that may be shown."""
        return self._give(self._stop.push(self._detokenizer.push(token)))

    def finish(self) -> str:
        """End the response; returns the text that was held back."""
        if self._stop.found:
            return ''
        rest = self._stop.push(self._detokenizer.finish())
        return self._give(rest if self._stop.found else rest + self._stop.finish())

    def _give(self, text: str) -> str:
        self.text += text
        return text
