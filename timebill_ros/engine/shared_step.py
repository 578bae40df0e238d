# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""One decode step of several queries."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from timebill_ros.engine.pipeline import Message, QueryRun

_NS = 1_000_000_000


def decode_together(runs: 'list[QueryRun]', tier: str = '') -> 'list[Message]':
    """
    Do one decode step of queries of one engine together and return what to send.

    ``tier`` '' = the fastest that any of their plans has. Who was dropped, or whose time is up,
    ends without it; an error ends them all.
    """
    messages = [each for run in runs for each in run.end_if_over()]
    runs = [run for run in runs if not run.done]
    if not runs:
        return messages
    engine, clock = runs[0].engine, runs[0].clock
    tier = tier or fastest(engine.info.tiers, [run.made.tier for run in runs])
    n_cached = sum(run.n_cached for run in runs) / len(runs)
    began_ns = clock()
    try:
        tokens = engine.decode_step([run.sequence for run in runs], tier)
    except Exception as error:      # the engine goes on with the next query
        return messages + [run.fail(error) for run in runs]
    ended_ns = clock()
    for run, token in zip(runs, tokens):
        messages += run.stepped(token, (ended_ns - began_ns) / _NS, tier, len(runs), n_cached)
    beside_s = (clock() - ended_ns) / _NS / len(runs)
    for run in runs:
        run.told(beside_s)
    return messages


def fastest(tiers: list[str], wanted: list[str]) -> str:
    """Return the fastest of the tiers ``wanted``; ``tiers`` are all, best quality first."""
    return max(wanted, key=lambda tier: tiers.index(tier) if tier in tiers else 0)
