# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables of what the benchmarks of the CUDA engine measured."""

from typing import Any

from timebill_ros.experiments import gpu_report

HEAD = {'device': 'GPU', 'torch': '2', 'date': 'today'}
SHARES = {'0.5': 1.0, '0.99': 1.1, '0.999': 1.2, '1': 3.0}


def made(part: str, **result: Any) -> str:
    text = gpu_report.table({**HEAD, **result}, part)
    assert text.startswith('GPU, torch 2, today.\n\n')
    return text


def test_steps_are_held_against_the_aims() -> None:
    rows = [{'tier': tier, 'width': width, 'cached_tokens': 512, 'step_ms': ms, 'ratio': ms}
            for tier, width, ms in (('bf16', 1, 2.0), ('bf16', 4, 2.2), ('int8', 1, 1.2),
                                    ('int4', 1, 0.9))]
    text = made('steps', steps=rows, errors={'bf16 width 1': 0.02},
                ceilings={'copy': 9e12, 'read_max': 4e12, 'read_other': 3e12})
    assert '| int4 | 1 | 0.90 ms (0.90, 0.45 of bf16) |' in text
    assert 'Read ceiling of the run 4.00 TB/s' in text
    assert '| four sequences: at most 1.15 times one, bf16 | 1.10 |' in text


def test_the_tail_has_the_shares_of_device_and_host() -> None:
    text = made('tail', tail=[{
        'tier': 'int4', 'beside': 'nothing', 'wait': 'busy', 'steps': 10000, 'step': SHARES,
        'device': SHARES, 'host': SHARES, 'p99.9/median': 1.2, 'device p99.9/median': 1.2}])
    assert '| int4 | nothing | busy | 10,000 | 1.00 / 1.10 / 1.20 / 3.00 |' in text


def test_parity_counts_how_far_apart_the_logits_are() -> None:
    text = made('parity', parity={
        'against': 'its own',
        'prompts': 50, 'identical': 48, 'gaps_at_first_difference': [0.0, 1.0], 'tokens': 2000,
        'tokens_differing': 3, 'gaps_in_bf16_steps': [0.0, 0.5, 3.0]})
    assert '| 50 prompts | 48 | 1 | 1 | 0 | 1.0 |' in text
    assert '| 2,000 tokens | 1997 | 2 | 0 | 1 | 3.0 |' in text


def test_every_other_part_is_a_table() -> None:
    parts: dict[str, dict[str, Any]] = {
        'quality': {'tier': 'int4', 'perplexity': 3.0, 'agrees_with_first': 0.9,
                    'divergence_nats': 0.1},
        'checked': {'tier': 'int4', 'width': 2, 'steps': 40, 'logits': 0.02, 'tap': 0.01,
                    'not_finite': 0},
        'prefill': {'tokens': 64, 'ms': 1.0, 'transformers_ms': 2.0, 'ratio': 0.5,
                    'longest_call_ms': 1.0},
        'fresh': {'tokens': '1...256', 'prompts': 3, 'first_to_again_median': 1.0, 'largest': 1.5,
                  'at': 200, 'again_spread_median': 1.01},
        'pace': {'tokens': 64, 'ms': 2.0, 'slowed': 1.0, 'launched_ms': 9.0,
                 'launched_slowed': 1.7, 'evict_ms': 0.1, 'evict_slowed': 1.2},
        'worth': {'tokens': 2048, 'answer': 256, 'bf16_ms': 1000.0, 'saved_by_alpha_0.5_ms': 3.0,
                  'saved_by_int4_ms': 600.0},
        'start': {'start': 'warm', 'tiers': ['int4'], 'process_s': 9.0, 'loaded_s': 8.0,
                  'allocated_bytes': 5e9, 'peak_bytes': 6e9},
        'ahead': {'tier': 'int4', 'width': 1, **{how: {
            'token_ms': 1.6, 'overhead_ms': 0.1, 'steps': 10, 'step': SHARES}
            for how in ('ahead', 'asked')}}}
    for part, row in parts.items():
        text = made(part, **{part: [row]})
        head, rule, cells = text.split('\n\n')[1].splitlines()
        assert head.count('|') == rule.count('|') == cells.count('|')
