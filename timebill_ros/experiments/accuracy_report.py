# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What ``timebill bench accuracy`` makes of its rows: errors and shares per phase, as a table."""

from collections.abc import Iterable, Iterator, Sequence
from math import nan
from statistics import fmean, median
from typing import Any

from timebill_ros.markdown import markdown_table, percent

Row = dict[str, Any]
MEASURED = 0
COLUMNS = {'profile': (1, 2), 'tracking': (3, 4)}      # predicted, worst case
LONG = 4096
_TITLES = {'prefill': 'prefill', 'decode': 'decode steps', 'total': 'in all'}
BLOCK = 20      # queries after which tracking has to have followed


def mape(pairs: Iterable[tuple[float, float]]) -> float:
    """Return the mean of |predicted - measured| / measured; NaN of none."""
    errors = [abs(predicted - measured) / measured for measured, predicted in pairs]
    return fmean(errors) if errors else nan


def pairs_of(rows: Sequence[Row], stage: str, which: str) -> list[tuple[float, float]]:
    """Return (measured, predicted) of a stage, or of 'total', of every query that had it."""
    column = COLUMNS[which][0]
    if stage == 'total':
        return [(total(row, MEASURED), total(row, column)) for row in rows]
    return [(row['stages'][stage][MEASURED], row['stages'][stage][column])
            for row in rows if stage in row['stages']]


def total(row: Row, column: int) -> float:
    """Return a column summed over the stages of one query."""
    return float(sum(values[column] for values in row['stages'].values()))


def above_worst(rows: Sequence[Row], which: str) -> float:
    """Return the share of queries that took longer than their worst case at the real length."""
    worst = COLUMNS[which][1]
    return fmean(total(row, MEASURED) > total(row, worst) for row in rows) if rows else nan


def figures(rows: Sequence[Row], which: str) -> dict[str, float]:
    """Return the errors and the share of one phase."""
    return {
        'queries': len(rows),
        **{stage: mape(pairs_of(rows, stage, which))
           for stage in ('prefill', 'decode', 'evict', 'overhead', 'total')},
        'above_worst': above_worst(rows, which)}


def details(rows: Sequence[Row]) -> str:
    """Return what the means hide: medians, steps by tier, and long prompts."""
    found = []
    for which in COLUMNS:
        errors = []
        for stage, title in _TITLES.items():
            pairs = pairs_of(rows, stage, which)
            off = median(abs(each / took - 1.0) for took, each in pairs) if pairs else None
            errors.append(f'{title} {_percent(off)}')
        found.append(f'with {which} {", ".join(errors)}')
    text = f'Medians, nothing else running: {"; ".join(found)}.'
    of_tiers = (
        f'{tier} ' + _percent(mape(pairs_of(
            [row for row in rows if row['tier'] == tier], 'decode', 'profile')))
        for tier in sorted({row['tier'] for row in rows}))
    text += f' Mean errors of decode steps with the profile: {", ".join(of_tiers)}.'
    long = [row for row in rows if row['n_prompt'] > LONG]
    if long:
        errors = [f'{_TITLES[stage]} {_percent(mape(pairs_of(long, stage, "profile")))}'
                  for stage in ('prefill', 'total')]
        text += f' Of the {len(long)} prompts beyond {LONG} tokens: {", ".join(errors)}.'
    return text


def repeats(rows: Sequence[Row]) -> str:
    """Return by what the second of two like queries in a row differed from the first; '' = none."""
    both = [row for row in rows if 'again' in row]
    if not both:
        return ''
    found = []
    for stage, title in _TITLES.items():
        if stage == 'total':
            pairs = [(total(row, MEASURED), sum(row['again'].values())) for row in both]
        else:
            pairs = [(row['stages'][stage][MEASURED], row['again'][stage]) for row in both
                     if stage in row['stages'] and stage in row['again']]
        differ, ratio = mape(pairs), median(second / first for first, second in pairs)
        # of two draws that are off by e the difference is e * sqrt(2), on average and if normal
        found.append(f'{title} {_percent(differ)} (median {ratio:.3f} times the first), so that '
                     f'who knew the mean would be off by {_percent(differ / 2.0 ** 0.5)}')
    return (f'What nothing can predict: of {len(both)} queries asked twice in a row the second '
            f'differed from the first by, on average: {"; ".join(found)}.')


def by_host(rows: Sequence[Row]) -> str:
    """Return the errors where the host was fast, and where it was slow; '' = not noted."""
    known = [row for row in rows if 'host_ms' in row]
    if not known:
        return ''
    took = [row['host_ms'] for row in known]
    middle = (min(took) * max(took)) ** 0.5
    found = []
    for title, own in (('less', [row for row in known if row['host_ms'] < middle]),
                       ('more', [row for row in known if row['host_ms'] >= middle])):
        errors = ', '.join(_percent(mape(pairs_of(own, stage, 'profile')))
                           for stage in ('prefill', 'decode', 'total'))
        found.append(f'{title} than {middle:.2f} ms, {len(own)} queries: {errors}')
    return (f'A fixed piece of Python took the host {min(took):.2f} to {max(took):.2f} ms, noted '
            'beside the queries. Errors of prefill, decode step and in all where it took '
            f'{"; ".join(found)}.')


def early_steps(rows: Sequence[Row]) -> str:
    """Return what the first steps of a response took beside later ones, by tier; '' = not noted."""
    known = [row for row in rows if 'early_ratio' in row]
    found = []
    for tier in sorted({row['tier'] for row in known}):
        own = [row for row in known if row['tier'] == tier]
        parts = [f'{median(row["early_ratio"] for row in part):.3f}{where}' for part, where in (
            ([row for row in own if row['n_prompt'] <= LONG], f' up to {LONG} tokens'),
            ([row for row in own if row['n_prompt'] > LONG], ' beyond')) if part]
        found.append(f'{tier} {", ".join(parts)}')
    return ('The first 8 steps of a response took, median, so many times those from the 20th on, '
            f'behind prompts by their length: {"; ".join(found)}.') if found else ''


def by_bandwidth(rows: Sequence[Row]) -> str:
    """Return what decode steps took where memory was fast and where it was slow; '' = not read."""
    known = [row for row in rows if 'read_gb_s' in row and 'decode' in row['stages']]
    if not known:
        return ''
    read = [row['read_gb_s'] for row in known]
    middle = (min(read) + max(read)) / 2.0
    found = []
    for title, own in (('above', [row for row in known if row['read_gb_s'] > middle]),
                       ('below', [row for row in known if row['read_gb_s'] <= middle])):
        ratios = [row['stages']['decode'][MEASURED] / row['stages']['decode'][1] for row in own]
        found.append(f'{title} {middle:.0f} GB/s ({len(own)} queries) steps took '
                     f'{fmean(ratios) if ratios else nan:.2f} times the profile')
    return (f'Memory was read at {min(read):.0f} to {max(read):.0f} GB/s beside the queries: '
            f'{"; ".join(found)}.')


def blocks(rows: Sequence[Row]) -> list[tuple[str, str, Sequence[Row]]]:
    """Return (phase, which queries of it, their rows); the first BLOCK apart where it drifts."""
    found: list[tuple[str, str, Sequence[Row]]] = []
    for index, phase in enumerate(dict.fromkeys(row['phase'] for row in rows)):
        of_phase = [row for row in rows if row['phase'] == phase]
        if index and len(of_phase) > BLOCK:
            found.append((phase, f'1-{BLOCK}', of_phase[:BLOCK]))
            found.append((phase, f'{BLOCK + 1}-{len(of_phase)}', of_phase[BLOCK:]))
        else:
            found.append((phase, f'1-{len(of_phase)}', of_phase))
    return found


def table(result: dict[str, Any]) -> str:
    """Return the tables of one result, in Markdown."""
    meta = result['meta']
    lines = [
        f'**{meta["name"]}**, {meta["device"]}, {meta["dtype"]}, tiers {", ".join(meta["tiers"])}, '
        f'{meta["date"]}, {meta["versions"]}: `{meta["command"]}`. '
        f'Profile up to {meta["profiled_tokens"]} tokens: {meta["samples"]} samples at '
        f'{meta["points"]} points in {meta["profile_s"]:.0f} s. Queries: prompts of 64 to '
        f'{meta["longest"]} tokens, {meta["responses"][0]} to {meta["responses"][1]} tokens of '
        'response.', '',
        markdown_table(
            ('phase', 'queries', 'coefficients', 'prefill', 'decode step', 'eviction', 'overhead',
             'end to end', 'above worst case'), _errors(result['rows']))]
    first = [row for row in result['rows'] if row['phase'] == result['rows'][0]['phase']]
    for text in (details(first), repeats(first), early_steps(first), by_host(first),
                 by_bandwidth(first)):
        lines += ['', text] if text else []
    for name, title in (('batches', 'Steps of 2 to {} sequences together'),
                        ('mixed', 'Prefills whose chunks take turns with decode steps')):
        rows = result.get(name) or []
        if rows:
            error = mape((row['seconds'], row['predicted_s']) for row in rows)
            what = title.format(max(row.get('width', 0) for row in rows))
            lines += ['', f'{what}: {len(rows)} measured, error {_percent(error)}.']
    lines += ['', markdown_table(
        ('law', 'form', 'error on unseen points', 'worst / law', 'correlation', 'samples'),
        ((law['title'], law['form'], _percent(law['mape']), f'{law["worst_ratio"]:.3f}',
          f'{law["correlation"]:.2f}', law['samples']) for law in result['laws'])), '']
    return '\n'.join(lines)


def _errors(rows: Sequence[Row]) -> Iterator[Sequence[str]]:
    """Yield the errors of every block of queries, with each kind of coefficients."""
    for phase, which_queries, of_block in blocks(rows):
        for which in COLUMNS:
            found = figures(of_block, which)
            yield phase, which_queries, which, *(_percent(found[name]) for name in (
                'prefill', 'decode', 'evict', 'overhead', 'total', 'above_worst'))


def _percent(share: float | None) -> str:
    return percent(share, 2)
