# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The text of one query's answer, and why it ends."""

from typing import TYPE_CHECKING

from timebill_ros.budget.landing import land
from timebill_ros.query import FinishReason, Query

if TYPE_CHECKING:
    from timebill_ros.engine.engine import Engine


class Response:
    """A response of at most ``cap`` tokens, the client's or the server's cap."""

    def __init__(self, engine: 'Engine', query: Query, cap: int) -> None:
        """Begin without a token."""
        self._end_ids = engine.end_ids
        self._query = query
        self._cap = cap
        self._stream = engine.response_text(query.stop)
        self._landed: str | None = None     # the response, cut where it landed
        self._n_tokens = 0

    @property
    def text(self) -> str:
        """The whole of it so far."""
        return self._stream.text if self._landed is None else self._landed

    def take(self, token: int) -> tuple[str, FinishReason]:
        """
        Take a token; returns the text that it adds, and why the response ends (NONE = not).

        What was planned plays no part: that an answer is cut short is for the clock to say.
        """
        self._n_tokens += 1
        if token in self._end_ids:
            return '', FinishReason.END_TOKEN
        text = self._stream.push(token)
        if self._stream.stopped:
            return text, FinishReason.STOP_STRING
        if self._n_tokens < self._cap:
            return text, FinishReason.NONE
        clients = self._query.cap_is_clients and self._cap == self._query.max_new_tokens
        return text, FinishReason.CLIENT_CAP if clients else FinishReason.SERVER_CAP

    def finish(self) -> str:
        """Return the text that was held back because more might have followed."""
        return self._stream.finish()

    def land(self, tokens_left: int) -> bool:
        """End it softly if this is a good place with so many tokens left; False = it is not."""
        point = land(self._stream.text, tokens_left, self._n_tokens)
        if point is not None:
            self._landed = point.apply(self._stream.text)
        return point is not None
