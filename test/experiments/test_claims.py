# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A row that was not measured under the policy it names is found."""

from typing import Any

import pytest

from timebill_ros.experiments import policies
from timebill_ros.experiments.claims import not_as_claimed

START = {'case': 'start/1', 'info': {'tiers': ['bf16', 'int8', 'int4']}}
VANILLA, HALF, INT4 = policies.fixed(0.0), policies.fixed(0.5), policies.fixed(0.0, 'int4')
PAPER, JOINT = policies.paper(5.0), policies.whole({'policy': 'joint'})


def row(policy: dict[str, Any], /, finish_reason: str = 'END_TOKEN',
        **timing: Any) -> dict[str, Any]:
    """Return the row of an answer of 24 tokens to 1,000 as the policy would have it."""
    alpha = policy['fixed_alpha']
    tier = policy['fixed_tier'] or 'bf16'
    record = {
        'policy': policy['policy'], 'plan_elapsed': 0.01, 'tier': tier, 'alpha': alpha,
        'alpha_raw': alpha, 'n_prompt': 1000, 'n_kept': round((1.0 - alpha) * 1000),
        'n_generated': 24, 'n_predicted': 24, 'n_worst': 24, 'replans': [],
        'pessimistic_factor': policy['pessimistic_factor'],
        'stretches': [{'tier': timing.get('tier', tier)}], 'predicted_decode': 0.02,
        'predicted_decode_worst': 0.03 if policy['worst_case_times'] else 0.02, **timing}
    return {'case': 'a', 'policy': policy, 'finish_reason': finish_reason, 'timing': record}


@pytest.mark.parametrize('policy', [VANILLA, HALF, INT4, PAPER, JOINT])
def test_rows_that_keep_to_their_policy(policy: dict[str, Any]) -> None:
    assert not not_as_claimed([START, row(policy)])


@pytest.mark.parametrize(('wrong', 'said'), [
    (row(VANILLA, tier='int4'), 'tier int4, not bf16'),
    (row(VANILLA, stretches=[{'tier': 'bf16'}, {'tier': 'int8'}]), 'tier bf16, int8, not bf16'),
    (row(VANILLA, alpha_raw=0.5, n_kept=500), 'α 0.5, not 0'),
    (row(HALF, n_kept=1000), '1000 of 1000 prompt tokens kept, not 500'),
    (row(HALF, policy='paper'), 'planned by paper, not by fixed'),
    (row(INT4, tier='bf16'), 'tier bf16, not int4'),
    (row(PAPER, finish_reason='PLANNED_CAP'), 'or capped'),
    (row(PAPER, pessimistic_factor=8.0), 'k was 8, not 5'),
    (row(PAPER, predicted_decode_worst=0.03), 'worst-case times'),
    (row(JOINT, predicted_decode_worst=0.02), 'expected times, not worst cases'),
])
def test_rows_that_do_not(wrong: dict[str, Any], said: str) -> None:
    assert said in '; '.join(not_as_claimed([START, row(VANILLA), wrong]))


def test_a_query_that_was_never_planned_claims_nothing() -> None:
    assert not not_as_claimed([START, row(VANILLA, plan_elapsed=None, tier='int4')])
