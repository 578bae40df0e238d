# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What is compared: each method is a set of planner parameters of the server."""

from dataclasses import dataclass, field, fields
from typing import Any

from timebill_ros.budget.planner import PlannerConfig, POLICIES
from timebill_ros.executor.messages import ModelInfo

FIXED_ALPHAS = (0.25, 0.5, 0.75, 0.95)
PAPER_K = 5.0       # the paper's pessimistic factor


@dataclass(frozen=True)
class Method:
    """A name for people, and the parameters (``Load.policy``) that make the server act so."""

    name: str
    label: str
    policy: dict[str, Any] = field(default_factory=dict)
    missing: str = ''       # why it cannot be run with this engine; '' = it can


def methods(info: ModelInfo) -> list[Method]:
    """Return the paper's baselines, the paper's method and ours, for what the engine serves."""
    quantised = info.tiers[-1]
    known = {each.name for each in fields(PlannerConfig)}
    found = [Method('vanilla', 'vanilla', fixed(0.0))]
    found += [Method(f'fixed-{alpha:g}', f'fixed α = {alpha:g}', fixed(alpha))
              for alpha in FIXED_ALPHAS]
    found.append(Method(
        'quantised', f'{quantised} alone', fixed(0.0, quantised),
        _no_tiers(info) or ('' if 'fixed_tier' in known else 'no tier can be fixed')))
    found.append(Method('paper', "TimeBill (paper's policy)", paper(PAPER_K)))
    found.append(Method(
        'joint', 'ours (joint)', whole({'policy': 'joint'}),
        '' if 'joint' in POLICIES else 'this version has no policy "joint"'))
    return found


def whole(policy: dict[str, Any]) -> dict[str, Any]:
    """Return the policy with all fields named: a running engine keeps what is not said."""
    defaults = PlannerConfig()
    return {name: policy.get(name, getattr(defaults, name)) for name in (
        'policy', 'fixed_alpha', 'fixed_tier', 'pessimistic_factor', 'pessimism',
        'worst_case_times')}


def fixed(alpha: float, tier: str = '') -> dict[str, Any]:
    """Return the policy that evicts the same share of every prompt, in one tier ('' = best)."""
    return whole({'policy': 'fixed', 'fixed_alpha': alpha, 'fixed_tier': tier})


def paper(k: float) -> dict[str, Any]:
    """Return the paper's policy with a factor k; it plans with expected times, as there."""
    return whole({'policy': 'paper', 'pessimistic_factor': k, 'worst_case_times': False})


def worst_case(k: float) -> dict[str, Any]:
    """Return the paper's policy as the server plans by default: with worst-case times too."""
    return whole({'policy': 'paper', 'pessimistic_factor': k})


def _no_tiers(info: ModelInfo) -> str:
    return '' if len(info.tiers) > 1 else f'the engine has one tier only ({info.tiers[0]})'
