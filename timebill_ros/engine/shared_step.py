# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""One decode step of several queries."""

from collections.abc import Callable
from typing import Any, TYPE_CHECKING

from timebill_ros.query import NS_PER_S

if TYPE_CHECKING:
    from timebill_ros.engine.engine import Engine
    from timebill_ros.engine.pipeline import Message, QueryRun


class StepClock:
    """
    What a decode step takes, for whoever asks for one after the other.

    That is from its start to its end; if it went ahead, from the end of the one before: so the
    times add up, and what the host did meanwhile took none.
    """

    def __init__(self, clock: Callable[[], int]) -> None:
        """``clock`` returns nanoseconds."""
        self._clock = clock
        self._ended_ns = 0

    def step(self, engine: 'Engine', sequences: list[Any], tier: str,
             goes_on: Callable[[bool], bool]) -> tuple[list[int], float]:
        """Do a step, as of ``Engine.decode_step``; returns its tokens and seconds."""
        ahead = engine.is_ahead(sequences, tier)
        if not ahead:
            engine.settle()
        began_ns = self._ended_ns if ahead else self._clock()
        tokens = engine.decode_step(sequences, tier, goes_on)
        self._ended_ns = self._clock()
        return tokens, (self._ended_ns - began_ns) / NS_PER_S


def decode_together(
        runs: 'list[QueryRun]', tier: str = '',
        may_go_ahead: Callable[[bool], bool] = lambda over: False) -> 'list[Message]':
    """
    Do one decode step of queries of one engine together and return what to send.

    ``tier`` '' = the fastest that any of their plans has. Who was dropped, or whose time is up,
    ends without it; an error ends them all. If ``may_go_ahead(over)`` says so, asked before or
    when the step is over, and no query is about to end, the engine begins with the same step again.
    """
    messages = [each for run in runs for each in run.end_if_over()]
    runs = [run for run in runs if not run.done]
    if not runs:
        return messages
    engine, clock = runs[0].engine, runs[0].clock
    tier = tier or fastest(engine.info.tiers, [run.made.tier for run in runs])
    n_cached = sum(run.n_cached for run in runs) / len(runs)

    def goes_on(over: bool) -> bool:
        return all(run.steps_again for run in runs) and may_go_ahead(over)

    try:
        tokens, step_s = runs[0].step_clock.step(
            engine, [run.sequence for run in runs], tier, goes_on)
    except Exception as error:      # the engine goes on with the next query
        return messages + [run.fail(error) for run in runs]
    ended_ns = clock()
    for run, token in zip(runs, tokens):
        messages += run.stepped(token, step_s, tier, len(runs), n_cached)
    beside_s = (clock() - ended_ns) / NS_PER_S / len(runs)
    for run in runs:
        run.told(beside_s)
    return messages


def fastest(tiers: list[str], wanted: list[str]) -> str:
    """Return the fastest of the tiers ``wanted``; ``tiers`` are all, best quality first."""
    return max(wanted, key=lambda tier: tiers.index(tier) if tier in tiers else 0)
