# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The tables in the docs of ``timebill bench cpu``."""

from collections.abc import Sequence
from typing import Any

from timebill_ros.markdown import markdown_table, MISSING

Row = dict[str, Any]


def table(report: Row) -> str:
    """Return all tables of a report, in Markdown."""
    peer = f', beside {report["peer"]} in turn' if report['peer'] else ''
    parts = [
        f'{report["date"]}, {report["device"]}, torch {report["torch"]}{peer}, load average '
        f'before {report["load_average"]:.1f}: `{report["command"]}`. Medians over rounds; '
        '"times as fast" is the median of the ratios within a round.',
        markdown_table(
            ('threads', 'cached tokens', 'tier', 'ms a step', 'llama.cpp, ms', 'times as fast'),
            (_step(row) for row in report['decode'])),
        markdown_table(
            ('threads', 'prompt tokens', 'products in', 's', 'GFLOP/s of products',
             'large float32 product, GFLOP/s', 'llama.cpp, s', 'times as fast'),
            (_prefill(row) for row in report['prefill']))]
    if report.get('answers'):
        first = report['answers'][0]
        parts += [f'Of {first["prompts"]} prompts, answers whose first {first["tokens"]} tokens '
                  'are those after an exact prefill: ' + ', '.join(
                      f'{row["same"]} (`prefill_tier: {row["prefill"]}`)'
                      for row in report['answers'][1:]) + '.']
    if report.get('worth'):
        parts += [f'Seconds that an answer of {report["answer"]} tokens takes to decode, and what '
                  'of it each choice saves (an eviction is taken off):',
                  _worth(report['worth'])]
    if report.get('text'):
        parts += ['Every tier reads the same text; its first 32 tokens are read in full precision.',
                  markdown_table(
                      ('tier', 'tokens', 'perplexity', 'same likeliest token as `fp32`',
                       'divergence, nats'),
                      ((f'`{row["tier"]}`', row['tokens'], f'{row["perplexity"]:.2f}',
                        f'{row["agreement"]:.3f}', f'{row["divergence_nats"]:.4f}')
                       for row in report['text']))]
    return '\n\n'.join(parts) + '\n'


def _step(row: Row) -> Sequence[Any]:
    return (row['threads'], f'{row["cached_tokens"]:,}', f'`{row["tier"]}`', f'{row["ms"]:.1f}',
            *_peer(row, 1.0, 1))


def _prefill(row: Row) -> Sequence[Any]:
    of = 'float32' if row['tier'] == 'fp32' else (
        f'{16 if row["tier"] == "int16" else 8} bits (`prefill_tier: {row["tier"]}`)')
    return (row['threads'], f'{row["prompt_tokens"]:,}', of, f'{row["ms"] / 1e3:.2f}',
            f'{row["gflops"]:.0f}', f'{row["gemm_gflops"]:.0f}', *_peer(row, 1e-3, 2))


def _peer(row: Row, unit: float, digits: int) -> Sequence[str]:
    if 'peer_ms' not in row:
        return MISSING, MISSING
    return f'{row["peer_ms"] * unit:.{digits}f}', f'{row["times_as_fast"]:.1f}'


def _worth(rows: Sequence[Row]) -> str:
    names = [name for name in rows[0] if name.endswith('_ms')]
    head = [name.removesuffix('_ms').replace('_', ' ').replace('alpha', 'α') for name in names]
    return markdown_table(('threads', 'prompt tokens', *head), (
        (row['threads'], f'{row["tokens"]:,}', *(f'{row[name] / 1e3:.2f}' for name in names))
        for row in rows))
