# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill bench length``: what predicting a response's length adds to the critical path."""

import argparse
from dataclasses import replace
from datetime import date
from statistics import median
import time
from typing import Any, NamedTuple

from timebill_ros.experiments.report_file import deliver
from timebill_ros.markdown import markdown_table, percent

COLUMNS = ('n_prompt', 'n_given', 'prefill_ms', 'predict_ms', 'added_ms', 'share', 'refine_ms')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.add_argument('--model', default='embedded', help='as for "timebill serve"')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--predictor', default='default', help='as the parameter of the node')
    parser.add_argument('--tokens', type=int, nargs='+', default=[128, 512, 1024, 2048],
                        help='lengths of prompts (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=9, help='of which the medians are shown')


def run(arguments: argparse.Namespace) -> int:
    """Measure and print a table; 0, or 1 if there is no predictor to measure."""
    from timebill_ros.engine.threads import prepare_environment
    prepare_environment()
    from timebill_ros.engine.engine import Engine
    from timebill_ros.executor.messages import Load

    load = Load(
        arguments.model, device=arguments.device, predictor=arguments.predictor, max_batch=1,
        max_context=max(arguments.tokens) + 64)
    engine = Engine.load(load)
    if engine.predictor is None:
        print('there is no length predictor for this model')
        return 1
    # on a GPU the prediction is part of the prefill, and with it the tapped state
    without = engine if engine.device.type == 'cpu' else Engine.load(replace(load, predictor=''))
    rows = measure(engine, without, arguments.tokens, arguments.rounds)
    made = {'device': engine.info.device, 'dtype': engine.info.dtype, 'model': engine.info.name,
            'date': date.today().isoformat(), 'predictor': engine.predictor.name,
            'rounds': arguments.rounds, 'rows': rows}
    deliver(made, arguments, _text)
    return 0


def _text(made: dict[str, Any]) -> str:
    return '\n'.join([
        f'{made["predictor"]} for {made["model"]} in {made["dtype"]} on {made["device"]}',
        '  '.join(f'{name:>10}' for name in COLUMNS),
        *('  '.join(_cell(name, row[name]) for name in COLUMNS) for row in made['rows'])])


def markdown(made: dict[str, Any]) -> str:
    """Return the table of the documentation."""
    return markdown_table(
        ('prompt tokens', 'tokens read', 'prefill, ms', 'after the first token, ms',
         'added in all, ms', 'share', 'a refinement, ms'),
        ((f'{row["n_prompt"]:,}', row['n_given'] or 'its state', f'{row["prefill_ms"]:.2f}',
          f'{row["predict_ms"]:.3f}', f'{row["added_ms"]:.3f}', percent(row['share'], 1),
          None if row['refine_ms'] is None else f'{row["refine_ms"]:.2f}')
         for row in made['rows'])) + '\n'


def measure(
        engine: Any, without: Any, lengths: list[int], rounds: int) -> list[dict[str, Any]]:
    """
    Return a row per prompt length; ``without`` is the engine without a predictor.

    ``predict_ms`` is what the prediction adds between the first token and the plan; ``added_ms`` is
    all that it adds, what it slows the prefill down on a GPU included; ``share`` is that over the
    prefill.
    """
    from timebill_ros.engine.length_forecast import LengthForecast
    from timebill_ros.engine.predict_law import with_predict_law
    from timebill_ros.time_estimator.coefficients import TimingCoefficients
    from timebill_ros.time_estimator.estimator import TimeEstimator
    from timebill_ros.time_estimator.fit import fit_law, Sample
    from timebill_ros.time_estimator.laws import AFFINE, DECODE_STEP, Law, PREFILL

    alone = {n: [_round(without, n).prefill_s for _ in range(rounds + 2)][2:] for n in lengths}
    laws = (
        fit_law(PREFILL, [Sample(PREFILL, n, s) for n in alone for s in alone[n]]),
        Law(DECODE_STEP, AFFINE, (0.0, 0.0)))
    info = engine.info
    estimator = TimeEstimator(with_predict_law(TimingCoefficients(
        time.time_ns(), info.device, info.key, info.dtype, info.engine_version, laws), engine),
        info.tiers[0])
    rows = []
    for n in lengths:
        plain, made = [], []
        n_given = LengthForecast(engine, _ids(n), info.n_max, estimator).n_given
        _round(engine, n, LengthForecast(engine, _ids(n), info.n_max, estimator))
        for _ in range(rounds):     # in turn, so that a slow moment slows both
            plain.append(_round(without, n))
            made.append(
                _round(engine, n, LengthForecast(engine, _ids(n), info.n_max, estimator)))
        prefill_s = median(each.prefill_s for each in plain)
        predict_s = median(each.predict_s for each in made)
        # on a CPU nothing runs beside the prefill; its noise is more than a prediction
        added_s = predict_s if engine.device.type == 'cpu' else median(
            each.prefill_s + each.predict_s for each in made) - prefill_s
        rows.append({
            'n_prompt': n, 'n_given': n_given, 'prefill_ms': 1e3 * prefill_s,
            'predict_ms': 1e3 * predict_s, 'added_ms': 1e3 * added_s,
            'share': added_s / prefill_s,
            'refine_ms': (1e3 * median(each.refine_s for each in made)
                          if engine.predictor.refine_layer else None)})
    return rows


class _Round(NamedTuple):
    """What one prompt took, seconds."""

    prefill_s: float            # with the choice of the first token
    predict_s: float = 0.0      # from there to the prediction
    refine_s: float = 0.0


def _round(engine: Any, n: int, forecast: Any = None) -> _Round:
    """Measure a prefill; with a forecast, that and a refinement too."""
    sequence = engine.open_sequence(_ids(n), n + 32)
    clock = time.perf_counter
    try:
        began_s = clock()
        if forecast is not None:
            forecast.begin(sequence)
        while not engine.prefill_chunk(sequence):
            pass
        engine.next_token(sequence)
        prefill_s = clock() - began_s
        if forecast is None:
            return _Round(prefill_s)
        forecast.predict(sequence)
        if not engine.predictor.refine_layer:
            return _Round(prefill_s, forecast.seconds)
        engine.decode_step([sequence])
        began_s = clock()
        forecast.look_again(sequence, 2)
        return _Round(prefill_s, forecast.seconds, clock() - began_s)
    finally:
        engine.close(sequence)


def _ids(n: int) -> list[int]:
    """Return a prompt of ``n`` ordinary tokens."""
    return [100 + i * 37 % 4000 for i in range(n)]


def _cell(name: str, value: Any) -> str:
    if value is None:
        return f'{"":>10}'
    if name == 'share':
        return f'{100 * value:>8.2f} %'
    return f'{value:>10.3f}' if isinstance(value, float) else f'{value:>10}'
