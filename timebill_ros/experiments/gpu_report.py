# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks of the CUDA engine measured, as tables in Markdown."""

from collections.abc import Callable
from typing import Any

from timebill_ros.markdown import markdown_table, percent

Row = dict[str, Any]
_SHARES = ('0.5', '0.99', '0.999', '1')


def table(result: Row, part: str) -> str:
    """Return the table of one part of a result, with what it was measured on."""
    made = _PARTS[part](result)
    return f'{result["device"]}, torch {result["torch"]}, {result["date"]}.\n\n{made}\n'


def _steps(result: Row) -> str:
    rows = result['steps']
    lengths = sorted({row['cached_tokens'] for row in rows})
    found = {(row['tier'], row['width'], row['cached_tokens']): row for row in rows}
    bandwidth = max(v for k, v in result['ceilings'].items() if k.startswith('read'))

    def cell(tier: str, width: int, length: int) -> str:
        row, base = found[tier, width, length], found['bf16', width, length]
        share = '' if tier == 'bf16' else f', {row["step_ms"] / base["step_ms"]:.2f} of bf16'
        return f'{row["step_ms"]:.2f} ms ({row["ratio"]:.2f}{share})'

    def ratios(tier: str, width: int) -> str:
        """Return the times of a kind of step over those of bf16 for one sequence."""
        return ', '.join(
            f'{found[tier, width, n]["step_ms"] / found["bf16", 1, n]["step_ms"]:.2f}'
            for n in lengths)

    kinds = dict.fromkeys((row['tier'], row['width']) for row in rows)
    floors = ', '.join(f'{found["bf16", 1, n]["ratio"]:.2f}' for n in lengths)
    return (f'Read ceiling of the run {bandwidth / 1e12:.2f} TB/s; largest relative error of the '
            f'logits {max(result["errors"].values()):.3f}.\n\n') + markdown_table(
        ['tier', 'sequences', *(f'{length:,} cached tokens each' for length in lengths)],
        ((*kind, *(cell(*kind, length) for length in lengths)) for kind in kinds)
    ) + '\n\n' + markdown_table(
        ['aim', 'reached at ' + ', '.join(f'{n:,}' for n in lengths) + ' tokens'],
        (('bf16, one sequence: at most 1.20 times the floor', floors),
         ('int8: at most 0.60 of bf16', ratios('int8', 1)),
         ('int4: at most 0.40 of bf16', ratios('int4', 1)),
         ('four sequences: at most 1.15 times one, bf16', ratios('bf16', 4))))


def _tail(result: Row) -> str:
    rows = []
    for row in result['tail']:
        shares = ['{0:.2f} / {1:.2f} / {2:.2f} / {3:.2f}'.format(
            *(row[name][share] for share in _SHARES)) for name in ('step', 'device', 'host')]
        rows.append((
            row['tier'], row['beside'], row['wait'], f'{row["steps"]:,}', *shares,
            f'{row["p99.9/median"]:.3f}', f'{row["device p99.9/median"]:.3f}'))
    return 'Milliseconds at the median, p99, p99.9 and maximum.\n\n' + markdown_table(
        ['tier', 'beside', 'the host waits', 'steps', 'step as the caller sees it', 'device',
         'the rest (host)', 'p99.9 / median', 'of the device alone'], rows)


def _ahead(result: Row) -> str:
    def both(row: Row, what: str) -> str:
        return f'{row["ahead"][what]:.3f} instead of {row["asked"][what]:.3f} ms'

    return markdown_table(
        ['tier', 'sequences', 'a token, all told', 'of that beside the model',
         'steps ahead', 'at the median, p99, p99.9 and maximum', 'on demand'],
        ((row['tier'], row['width'], both(row, 'token_ms'), both(row, 'overhead_ms'),
          f'{row["ahead"]["steps"]:,}', *(' / '.join(
              f'{row[how]["step"][share]:.2f}' for share in _SHARES) + ' ms'
              for how in ('ahead', 'asked'))) for row in result['ahead']))


def _quality(result: Row) -> str:
    return markdown_table(
        ['weights', 'perplexity', 'same likeliest token as bf16', 'divergence'],
        ((row['tier'], f'{row["perplexity"]:.2f}', percent(row['agrees_with_first'], 1),
          f'{row["divergence_nats"]:.4f} nats') for row in result['quality']))


def _checked(result: Row) -> str:
    return markdown_table(
        ['tier', 'sequences', 'steps', 'largest error of the logits', 'of the tapped state',
         'values that are no numbers'],
        ((row['tier'], row['width'], row['steps'], f'{row["logits"]:.4f}', f'{row["tap"]:.4f}',
          row['not_finite']) for row in result['checked']))


def _parity(result: Row) -> str:
    parity = result['parity']
    rows = []
    for what, count, same, name in (
            (f'our answers, up to the first token that differs from {parity["against"]}',
             f'{parity["prompts"]} prompts',
             parity['identical'], 'gaps_at_first_difference'),
            ('each token of ours, read in one pass', f'{parity["tokens"]:,} tokens',
             parity['tokens'] - parity['tokens_differing'], 'gaps_in_bf16_steps')):
        gaps = parity[name]
        rows.append((what, count, same, *(
            sum(low <= gap < high for gap in gaps) for low, high in ((0, 1), (1, 2), (2, 1e9))),
            max(gaps, default=0.0)))
    return markdown_table(
        ['against transformers', 'compared', 'the same', 'differ at equal logits',
         'at logits one step of bf16 apart', 'further apart', 'largest gap in steps'], rows)


def _prefill(result: Row) -> str:
    return markdown_table(
        ['prompt tokens', 'ours', 'transformers', 'ratio', 'longest call'],
        ((f'{row["tokens"]:,}', f'{row["ms"]:.1f} ms', f'{row["transformers_ms"]:.1f} ms',
          f'{row["ratio"]:.2f}', f'{row["longest_call_ms"]:.1f} ms') for row in result['prefill']))


def _fresh(result: Row) -> str:
    return markdown_table(
        ['prompt tokens', 'prompts', 'first time over again, median', 'largest',
         'again: slower over faster, median'],
        ((row['tokens'], row['prompts'], f'{row["first_to_again_median"]:.3f}',
          f'{row["largest"]:.3f} at {row["at"]:,}', f'{row["again_spread_median"]:.3f}')
         for row in result['fresh']))


def _pace(result: Row) -> str:
    names = ('', 'launched_', 'evict_')

    def cells(row: Row) -> list[str]:
        return [each for name in names
                for each in (f'{row[name + "ms"]:.2f} ms', f'{row[name + "slowed"]:.2f}')]

    return markdown_table(
        ['prompt tokens', 'as served', 'times', 'every kernel launched', 'times',
         'eviction of half', 'times'],
        ([f'{row["tokens"]:,}', *cells(row)] for row in result['pace']))


def _evict(result: Row) -> str:
    rows = result['evict']
    found = {(row['alpha'], row['tokens']): f'{row["ms"]:.2f} ms' for row in rows}
    lengths = sorted({row['tokens'] for row in rows})
    return markdown_table(
        ['evicted share of', *(f'{tokens:,} tokens' for tokens in lengths)],
        ([alpha, *(found[alpha, tokens] for tokens in lengths)]
         for alpha in sorted({row['alpha'] for row in rows})))


def _worth(result: Row) -> str:
    rows = result['worth']
    names = [name for name in rows[0] if name not in ('tokens', 'answer')]
    return markdown_table(
        ['prompt tokens', 'answer', *(name.removesuffix('_ms').replace('_', ' ') + ', ms'
                                      for name in names)],
        ((f'{row["tokens"]:,}', row['answer'], *(row[name] for name in names)) for row in rows))


def _start(result: Row) -> str:
    return markdown_table(
        ['start', 'tiers', 'process, first answer included', 'to a loaded engine', 'memory kept',
         'at the peak'],
        ((row['start'], ', '.join(row['tiers']), f'{row["process_s"]:.1f} s',
          f'{row["loaded_s"]:.1f} s', f'{row["allocated_bytes"] / 1e9:.2f} GB',
          f'{row["peak_bytes"] / 1e9:.2f} GB') for row in result['start']))


def _clock(result: Row) -> str:
    return markdown_table(
        ['tier', 'prompt tokens', 'prefill', 'clock before', 'lowest', 'low from its start on',
         'until', 'at the power cap'],
        ((row['tier'], f'{row["tokens"]:,}', f'{row["prefill_ms"]:.0f} ms',
          f'{row["before_mhz"]:,} MHz', f'{row["lowest_mhz"]:,} MHz', f'{row["low_from_ms"]} ms',
          f'{row["low_until_ms"]} ms', 'yes' if row['power_cap'] else 'no')
         for row in result['clock']))


def _behind(result: Row) -> str:
    return markdown_table(
        ['tier', 'behind', 'prefill', 'step 1', '2-8', '9-16', '17-24', '25-32', '33-48', '49-64',
         'later'],
        ((row['tier'], f'{row["tokens"]:,} tokens', f'{row["prefill_ms"]:.1f} ms',
          *(f'{ratio:.3f}' for ratio in row['ratios']), f'{row["settled_ms"]:.3f} ms')
         for row in result['behind']))


def _repeats(result: Row) -> str:
    return markdown_table(
        ['prompt tokens', 'prompts', 'prefill', 'deviation', 'of which the device', 'deviation',
         'the rest', 'deviation'],
        ((row['tokens'], row['prompts'], f'{row["prefill_ms"]:.2f} ms',
          percent(row['prefill_deviation'], 1), f'{row["device_ms"]:.2f} ms',
          percent(row['device_deviation'], 1), f'{row["host_ms"]:.2f} ms',
          f'{row["host_deviation_ms"]:.2f} ms') for row in result['repeats']))


_PARTS: dict[str, Callable[[Row], str]] = {
    'clock': _clock, 'behind': _behind, 'repeats': _repeats,
    'steps': _steps, 'tail': _tail, 'quality': _quality, 'checked': _checked, 'parity': _parity,
    'prefill': _prefill, 'evict': _evict, 'fresh': _fresh, 'pace': _pace,
    'worth': _worth, 'start': _start, 'ahead': _ahead}
