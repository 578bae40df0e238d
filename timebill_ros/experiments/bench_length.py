# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill bench length``: what predicting a response's length adds to the critical path."""

import argparse
from datetime import date
import json
from statistics import median
import time
from typing import Any

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

    engine = Engine.load(Load(
        arguments.model, device=arguments.device, predictor=arguments.predictor, max_batch=1,
        max_context=max(arguments.tokens) + 64))
    if engine.predictor is None:
        print('there is no length predictor for this model')
        return 1
    rows = measure(engine, arguments.tokens, arguments.rounds)
    made = {'device': engine.info.device, 'dtype': engine.info.dtype, 'model': engine.info.name,
            'date': date.today().isoformat(), 'predictor': engine.predictor.name,
            'rounds': arguments.rounds, 'rows': rows}
    if arguments.json:
        print(json.dumps(made))
        return 0
    print(f'{made["predictor"]} for {made["model"]} in {made["dtype"]} on {made["device"]}')
    print('  '.join(f'{name:>10}' for name in COLUMNS))
    for row in rows:
        print('  '.join(_cell(name, row[name]) for name in COLUMNS))
    return 0


def markdown(made: dict[str, Any]) -> str:
    """Return the table of the documentation."""
    lines = [
        '| prompt tokens | tokens read | prefill, ms | after the first token, ms '
        '| added in all, ms | share | a refinement, ms |', '|---|---|---|---|---|---|---|']
    for row in made['rows']:
        refined = '' if row['refine_ms'] is None else f'{row["refine_ms"]:.2f}'
        lines.append(
            f'| {row["n_prompt"]:,} | {row["n_given"] or "its state"} | {row["prefill_ms"]:.2f} '
            f'| {row["predict_ms"]:.3f} | {row["added_ms"]:.3f} | {100 * row["share"]:.1f} % '
            f'| {refined} |')
    return '\n'.join(lines) + '\n'


def measure(engine: Any, lengths: list[int], rounds: int) -> list[dict[str, Any]]:
    """
    Return a row per prompt length.

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

    alone = {n: [_prefill_s(engine, n) for _ in range(rounds + 2)][2:] for n in lengths}
    laws = (
        fit_law(PREFILL, [Sample(PREFILL, n, s) for n in alone for s in alone[n]]),
        Law(DECODE_STEP, AFFINE, (0.0, 0.0)))
    info = engine.info
    estimator = TimeEstimator(with_predict_law(TimingCoefficients(
        time.time_ns(), info.device, info.key, info.dtype, info.engine_version, laws), engine),
        info.tiers[0])
    rows = []
    for n in lengths:
        without, beside, predict, refine = [], [], [], []
        forecast = LengthForecast(engine, _ids(n), info.n_max, estimator)
        for _ in range(rounds):     # in turn, so that a slow moment slows both
            without.append(_prefill_s(engine, n))
            forecast = LengthForecast(engine, _ids(n), info.n_max, estimator)
            beside.append(_prefill_s(engine, n, forecast, refine))
            predict.append(forecast.seconds)
        # on a CPU nothing runs beside the prefill; its noise is more than a prediction
        added_s = (median(a + b for a, b in zip(beside, predict)) - median(without)
                   if engine.device.type == 'cuda' else median(predict))
        rows.append({
            'n_prompt': n, 'n_given': forecast.n_given,
            'prefill_ms': 1e3 * median(without), 'predict_ms': 1e3 * median(predict),
            'added_ms': 1e3 * added_s, 'share': added_s / median(without),
            'refine_ms': 1e3 * median(refine) if refine else None})
    return rows


def _prefill_s(
        engine: Any, n: int, forecast: Any = None, refine: list[float] | None = None) -> float:
    """Return the time of a prefill with its first token; with a forecast, make that too."""
    sequence = engine.open_sequence(_ids(n), n + 32)
    predictor = engine.predictor
    try:
        if forecast is None:
            engine.predictor = None     # a GPU's engine begins a prediction in the prefill
        began_s = time.perf_counter()
        if forecast is not None:
            forecast.begin()
        while not engine.prefill_chunk(sequence):
            pass
        engine.next_token(sequence)
        took_s = time.perf_counter() - began_s
        if forecast is not None:
            forecast.predict(sequence)
        if forecast is not None and refine is not None and engine.predictor.refine_layer:
            engine.decode_step([sequence])
            began_s = time.perf_counter()
            forecast.look_again(sequence, 2)
            refine.append(time.perf_counter() - began_s)
        return took_s
    finally:
        engine.predictor = predictor
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
