# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Whether a row was measured with the policy that it is reported under.

A running engine keeps the planner fields that a new policy does not name. Once that made baselines
inherit the tier of the policy before them; nobody saw it, because the rows were believed. Now each
row carries its policy, and is held against what the engine's own record says was done.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from timebill_ros.budget.kept import kept_tokens
from timebill_ros.query import FinishReason

Row = dict[str, Any]
_ALPHA_ERROR = 1e-6     # rows and summaries hold decimal numbers
_FASTER = 0.999         # a worst case is longer than what is expected by more than rounding


def not_as_claimed(rows: Sequence[Row]) -> list[str]:
    """Return what is wrong, a line per row; rows name the engine's tiers and their policy."""
    tiers: list[str] = []
    found = []
    for row in rows:
        tiers = row['info']['tiers'] if 'info' in row else tiers
        if 'policy' in row and (row.get('timing') or {}).get('plan_elapsed') is not None:
            found += [f'{row["case"]}: {each}' for each in _broken(row, tiers)]
    return found


def _broken(row: Row, tiers: Sequence[str]) -> Iterator[str]:
    """Yield what the record of a planned query says against its policy."""
    policy, timing = row['policy'], row['timing']
    if timing['policy'] != policy['policy']:
        yield f'planned by {timing["policy"]}, not by {policy["policy"]}'
    learns = policy['pessimism'] == 'learned'
    k = timing['pessimistic_factor']
    if k is not None and not learns and k != policy['pessimistic_factor']:
        yield f'k was {k:g}, not {policy["pessimistic_factor"]:g}'
    if not learns:
        yield from _times(policy, timing)
    if policy['policy'] == 'joint':
        return
    wanted = policy['fixed_tier'] if policy['policy'] == 'fixed' else ''
    used = {timing['tier'], *(each['tier'] for each in timing['stretches'])}
    if used != {wanted or tiers[0]}:
        yield f'tier {", ".join(sorted(used))}, not {wanted or tiers[0]}'
    if policy['policy'] == 'fixed':
        yield from _evicted(policy['fixed_alpha'], timing)
    if timing['replans'] or row['finish_reason'] == FinishReason.PLANNED_CAP.name:
        yield 'planned again, or capped, by a policy that does neither'


def _evicted(alpha: float, timing: Row) -> Iterator[str]:
    """Yield what differs from a fixed α; an answer that ended before its eviction has only one."""
    if abs(timing['alpha_raw'] - alpha) > _ALPHA_ERROR:
        yield f'α {timing["alpha_raw"]:g}, not {alpha:g}'
    kept = kept_tokens(timing['n_prompt'], alpha)
    if timing['n_generated'] > 1 and timing['n_kept'] != kept:
        yield f'{timing["n_kept"]} of {timing["n_prompt"]} prompt tokens kept, not {kept}'


def _times(policy: Row, timing: Row) -> Iterator[str]:
    """Yield whether the plan's times were worst cases, or expected ones, against the policy."""
    expected, worst = timing['predicted_decode'], timing['predicted_decode_worst']
    if not expected or not worst or timing['n_predicted'] != timing['n_worst']:
        return      # of the same length both are comparable, and only then
    planned_worst = expected < _FASTER * worst
    if planned_worst != policy['worst_case_times']:
        yield 'worst-case times' if planned_worst else 'expected times, not worst cases'
