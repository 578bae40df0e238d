# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How a query that has a place in the engine can end, in the words that the client reads."""

from timebill_ros.engine.errors import OutOfMemory
from timebill_ros.query import (
    Ending, ErrorCode, FinishReason, NS_PER_S, Outcome, Query, QueryTiming)

DROPPED = Ending(
    Outcome.CANCELED, error_code=ErrorCode.CANCELED_BY_CLIENT, error_msg='the node ended the query')


def answered(query: Query, reason: FinishReason, now_ns: int) -> Ending:
    """Return the ending of an answer that came to its end; late under SKIP_NEXT it is a miss."""
    late_s = (now_ns - query.plan_deadline_ns) / NS_PER_S
    if late_s >= 0.0:
        return Ending(
            Outcome.DEADLINE_MISSED, reason, ErrorCode.DEADLINE_MISSED,
            f'the answer was whole {late_s:.3f} s too late to be handed over in time')
    ours = reason in (FinishReason.PLANNED_CAP, FinishReason.LANDED)
    return Ending(Outcome.TRUNCATED if ours else Outcome.COMPLETED, reason)


def missed(query: Query, timing: QueryTiming, cap: int) -> Ending:
    """Return the ending of a query whose time is up in the middle of its work."""
    where = (f'after {timing.n_generated} of at most {cap} tokens' if timing.n_generated
             else f'in the prefill of {timing.n_prompt} tokens')
    when = 'the deadline came'
    if query.overrun_ns:
        when = f'max_overrun_s = {query.overrun_ns / NS_PER_S:g} s after the deadline came'
    return Ending(
        Outcome.DEADLINE_MISSED, error_code=ErrorCode.DEADLINE_MISSED,
        error_msg=f'{when} {where}')


def failed(error: Exception) -> Ending:
    """Return the ending of a query that an error ended."""
    lines = str(error).strip().splitlines()
    what = lines[0] if lines else type(error).__name__
    code = ErrorCode.OUT_OF_MEMORY if isinstance(error, OutOfMemory) else ErrorCode.ENGINE_ERROR
    return Ending(Outcome.FAILED, error_code=code, error_msg=what)
