# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures of the timing laws and of what they predicted; every curve asks the laws themselves."""

from collections.abc import Sequence
from math import ceil, isfinite

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
import numpy as np

from timebill_ros.experiments.plot_data import Profile, Record
from timebill_ros.query import Outcome
from timebill_ros.time_estimator.fit import Sample
from timebill_ros.time_estimator.laws import Law, RECOVERY

MEASURED, LAW, WORST = '#1f77b4', '#222222', '#d62728'
_COLOR_OF = {
    Outcome.COMPLETED.name: '#2ca02c', Outcome.TRUNCATED.name: '#17becf',
    Outcome.DEADLINE_MISSED.name: '#d62728', Outcome.INFEASIBLE.name: '#9467bd',
    Outcome.SKIPPED.name: '#8c564b', Outcome.INVALID.name: '#7f7f7f',
    Outcome.CANCELED.name: '#bcbd22', Outcome.FAILED.name: '#000000'}
_CURVE_POINTS = 200
_LAWS_A_ROW = 4

Pairs = list[tuple[float, float]]


def profile_figure(profile: Profile) -> Figure:
    """Draw each law with its samples, and below it how far they are from it."""
    laws = drawn_laws(profile)
    columns = min(_LAWS_A_ROW, len(laws))
    rows = ceil(len(laws) / columns)
    figure = Figure(figsize=(4.2 * columns, 6.0 * rows + 0.4), layout='constrained')
    figure.suptitle(profile.coefficients.key, fontsize=10)
    places = figure.subfigures(rows, columns, squeeze=False).flat
    for law, place in zip(laws, places):
        samples = _samples_of(law, profile)
        above, below = place.subplots(2, 1, sharex=True, height_ratios=(2, 1))
        _draw_law(above, law, samples)
        _draw_residuals(below, law, samples)
    return figure


def drawn_laws(profile: Profile) -> list[Law]:
    """
    Return the laws that have samples; without any, all that are laws of tokens.

    RECOVERY is one of steps behind a prompt, and has been taken off the samples: the table of the
    page shows it.
    """
    laws = [law for law in profile.coefficients.laws if law.law != RECOVERY]
    return [law for law in laws if _samples_of(law, profile)] or laws


def _samples_of(law: Law, profile: Profile) -> list[Sample]:
    return [each for each in profile.samples
            if (each.law, each.width) == (law.law, law.width)
            and (each.tier == law.tier or '' in (each.tier, law.tier))]


def expected_s(law: Law, sample: Sample) -> float:
    """Return what a law expects of a sample."""
    return law.seconds(sample.n_tokens, sample.n_done)


def _draw_law(axes: Axes, law: Law, samples: Sequence[Sample]) -> None:
    longest = max([each.n_tokens for each in samples] + [int(knot) for knot in law.knots] + [64])
    shortest = min([each.n_tokens for each in samples] + [16])
    tokens = np.geomspace(max(1, shortest / 2), longest, _CURVE_POINTS)
    seconds = np.array([law.seconds(n) for n in tokens])
    axes.plot(tokens, 1e3 * seconds, color=LAW, label=f'law ({law.form})')
    axes.plot(tokens, 1e3 * law.worst_ratio * seconds, '--', color=WORST,
              label=f'worst case (× {law.worst_ratio:.2f})')
    # what was measured behind cached tokens stands at the law plus its own deviation
    axes.plot([each.n_tokens for each in samples],
              [1e3 * (law.seconds(each.n_tokens) + each.seconds - expected_s(law, each))
               for each in samples], '.', color=MEASURED, alpha=0.6, label='measured')
    unseen = f', unseen {law.mape:.1%}' if isfinite(law.mape) else ''
    axes.set_title(f'{law.title} ({law.samples} samples{unseen})', fontsize=9)
    axes.set(xscale='log', yscale='log', ylabel='ms')
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def _draw_residuals(axes: Axes, law: Law, samples: Sequence[Sample]) -> None:
    known = [each for each in samples if expected_s(law, each) > 0.0]
    axes.axhline(0.0, color=LAW, linewidth=1)
    axes.axhline(100.0 * (law.worst_ratio - 1.0), color=WORST, linewidth=1, linestyle='--')
    axes.plot([each.n_tokens for each in known],
              [100.0 * (each.seconds / expected_s(law, each) - 1.0) for each in known], '.',
              color=MEASURED, alpha=0.6)
    axes.set(xscale='log', xlabel='tokens', ylabel='measured − law, %')
    axes.grid(alpha=0.3)


def pairs_of(records: Sequence[Record], stage: str) -> Pairs:
    """Return (predicted, measured) seconds of a stage, of every query that reached it."""
    found = []
    for record in records:
        timing = record.timing
        predicted, measured = {
            'prefill': (timing.predicted_prefill, timing.prefill),
            'decode': (timing.predicted_decode_realised, timing.decode),
            'prefill + decode': (timing.predicted_prefill + timing.predicted_decode_realised,
                                 timing.prefill + timing.decode)}[stage]
        if isfinite(predicted) and isfinite(measured) and predicted > 0.0 and measured > 0.0:
            found.append((predicted, measured))
    return found


def mape(pairs: Pairs) -> float:
    """Return the mean absolute error, relative to what was measured."""
    return float(np.mean([abs(predicted - measured) / measured for predicted, measured in pairs]))


def records_figure(records: Sequence[Record]) -> Figure:
    """Draw predicted against measured, their ratio from query to query, and the budgets."""
    figure = Figure(figsize=(12.6, 7.2), layout='constrained')
    axes = figure.subplots(2, 3)
    for each, stage in zip(axes[0], ('prefill', 'decode', 'prefill + decode')):
        _draw_pairs(each, stage, pairs_of(records, stage))
    _draw_ratios(axes[1][0], records)
    _draw_slack(axes[1][1], records)
    _draw_decisions(axes[1][2], records)
    figure.suptitle(f'{len(records)} queries', fontsize=10)
    return figure


def _draw_pairs(axes: Axes, stage: str, pairs: Pairs) -> None:
    title = stage
    if pairs:
        predicted, measured = np.array(pairs).T
        low, high = 0.9 * min(predicted.min(), measured.min()), 1.1 * max(
            predicted.max(), measured.max())
        axes.plot([low, high], [low, high], color=LAW, linewidth=1)
        axes.plot(predicted, measured, '.', color=MEASURED, alpha=0.6)
        axes.set(xscale='log', yscale='log', xlim=(low, high), ylim=(low, high))
        title += f': mean error {mape(pairs):.1%} of {len(pairs)}'
    axes.set_title(title, fontsize=9)
    axes.set(xlabel='predicted, s (decode: at the real length)', ylabel='measured, s')
    axes.grid(alpha=0.3)


def _draw_ratios(axes: Axes, records: Sequence[Record]) -> None:
    for stage, marker in (('prefill', '.'), ('decode', '+')):
        ratios = [measured / predicted if predicted > 0.0 else np.nan for predicted, measured in (
            (each.timing.predicted_prefill, each.timing.prefill) if stage == 'prefill' else
            (each.timing.predicted_decode_realised, each.timing.decode) for each in records)]
        axes.plot(range(1, len(ratios) + 1), ratios, marker, label=stage)
    axes.axhline(1.0, color=LAW, linewidth=1)
    axes.set(xlabel='query', ylabel='measured / predicted', yscale='log')
    axes.set_title('how well the estimate follows', fontsize=9)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def _draw_slack(axes: Axes, records: Sequence[Record]) -> None:
    for outcome in dict.fromkeys(each.outcome for each in records):
        points = [(number, each.timing.slack) for number, each in enumerate(records, 1)
                  if each.outcome == outcome]
        axes.plot(*zip(*points), '.', color=_COLOR_OF.get(outcome, LAW), label=outcome)
    axes.axhline(0.0, color=WORST, linewidth=1, linestyle='--')
    axes.set(xlabel='query', ylabel='slack, s')
    axes.set_title('time left at the end', fontsize=9)
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def _draw_decisions(axes: Axes, records: Sequence[Record]) -> None:
    axes.scatter([each.timing.n_prompt for each in records],
                 [each.timing.alpha for each in records], s=14,
                 c=[_COLOR_OF.get(each.outcome, LAW) for each in records], alpha=0.7)
    axes.set(xlabel='prompt, tokens', ylabel='eviction ratio α', ylim=(-0.03, 1.0))
    axes.set_title('what was decided', fontsize=9)
    axes.grid(alpha=0.3)
