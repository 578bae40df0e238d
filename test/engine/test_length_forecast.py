# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The length predictor in a query's path: when it runs, what it is given, what the record says."""

from math import isnan
from pathlib import Path
import threading
from typing import Any, Optional

import numpy as np
import pytest
import torch

from timebill_ros.budget.pessimism import worst_length
from timebill_ros.budget.planner import PlannerConfig, Planning
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.length_forecast import LengthForecast, REFINE_STEPS
from timebill_ros.engine.pipeline import QueryRun
from timebill_ros.engine.predict_law import with_predict_law
from timebill_ros.executor.messages import Finished, Load
from timebill_ros.length_predictor.checkpoint import CheckpointError, load_checkpoint
from timebill_ros.length_predictor.device_probe import DeviceProbe
from timebill_ros.length_predictor.distribution import LengthDistribution
from timebill_ros.length_predictor.serving import predictor_for, SHIPPED
from timebill_ros.length_predictor.shortening import prompt_tokens_that_fit
from timebill_ros.query import Query, QueryTiming, Sampling, Turn
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import Law

S = 1_000_000_000
STORY = 'Write a long story about a robot that finds a lost child in the forest.'


def coefficients(predict_s: float = 0.0) -> TimingCoefficients:
    laws = [
        Law('prefill', 'quadratic', (0.0, 1e-3, 0.01)), Law('decode_step', 'affine', (0.0, 0.02)),
        Law('evict', 'affine', (0.0, 0.01))]
    if predict_s:
        laws.append(Law('predict', 'quadratic', (0.0, predict_s, 0.0), samples=5))
    return TimingCoefficients(
        stamp_ns=5, device='d', model='m', dtype='float32', engine_version='1', laws=tuple(laws))


def planning(**config: Any) -> Planning:
    return Planning(TimeEstimator(coefficients(), 'fp32'), PlannerConfig(**config), 'file')


def ask(engine: Engine, text: str, cap: int, allowance_s: int = 1000, **config: Any) -> QueryTiming:
    """Return the record of a whole query."""
    import time
    now = time.monotonic_ns()
    query = Query(
        query_id='q', messages=[Turn('user', text)], arrival_ns=now,
        deadline_ns=now + allowance_s * S, plan_deadline_ns=now + allowance_s * S,
        max_new_tokens=cap, cap_is_clients=False, sampling=Sampling(repetition_penalty=1.1))
    run = QueryRun(engine, query, engine.tokenize(query.messages), cap, planning(**config))
    while not run.done:
        last = run.advance()
    assert isinstance(last[-1], Finished)
    return last[-1].timing


@pytest.fixture
def probing(embedded: Engine, embedded_directory: Path, monkeypatch: Any) -> Engine:
    """Return the engine with the shipped predictor."""
    monkeypatch.setattr(embedded, 'predictor', predictor_for(
        'default', embedded_directory, embedded.info.vocab_size, 576, 'cpu'))
    return embedded


def test_without_a_predictor_the_cap_is_the_worst_case_and_the_record_says_so(
        embedded: Engine) -> None:
    timing = ask(embedded, 'What is the capital of France?', 40)
    assert (timing.predictor, timing.n_predicted, timing.n_worst) == ('', 0, 40)
    assert isnan(timing.predict) and isnan(timing.predicted_predict)


@pytest.mark.parametrize('k', [1.0, 2.5])
def test_the_predicted_length_is_planned_with(probing: Engine, k: float) -> None:
    timing = ask(probing, 'What is the capital of France?', 400, policy='paper',
                 pessimistic_factor=k)
    assert timing.predictor == 'probe' and 16 <= timing.n_predicted <= 400
    assert timing.n_predicted % 16 == 0 or timing.n_predicted == 400
    assert timing.n_worst == worst_length(timing.n_predicted, k, 400)
    assert timing.predict > 0.0 and timing.predicted_decode > 0.0


def test_a_story_is_predicted_to_be_longer_than_a_fact(probing: Engine) -> None:
    forecasts = []
    for text in (STORY, 'What is the capital of France?'):
        ids = probing.tokenize([Turn('user', text)])
        sequence = probing.open_sequence(ids, len(ids) + 40)
        while not probing.prefill_chunk(sequence):
            pass
        forecast = LengthForecast(probing, ids, 512, TimeEstimator(coefficients(), 'fp32'))
        forecast.predict(sequence)
        probing.close(sequence)
        forecasts.append(forecast)
    story, fact = forecasts
    assert story.n_predicted > fact.n_predicted
    tokens = [n for _, n in story.quantiles]
    assert tokens == sorted(tokens) and tokens[-1] <= 512


def test_the_rest_is_predicted_anew_while_decoding(probing: Engine) -> None:
    """Every few steps from the newest state; between two looks a token less is left at each."""
    ids = probing.tokenize([Turn('user', STORY)])
    sequence = probing.open_sequence(ids, len(ids) + 60, Sampling(repetition_penalty=1.1))
    while not probing.prefill_chunk(sequence):
        pass
    probing.next_token(sequence)
    forecast = LengthForecast(probing, ids, 512, TimeEstimator(coefficients(), 'fp32'))
    forecast.predict(sequence)
    first, left = forecast.quantiles, []
    for n_generated in range(2, REFINE_STEPS + 4):
        probing.decode_step([sequence])
        forecast.refine(sequence, n_generated)
        left.append(forecast.n_left)
    probing.close(sequence)
    looked = REFINE_STEPS - 1
    assert set(left[:looked]) == {0} and left[looked] > 1
    assert left[looked + 1] == left[looked] - 1
    assert forecast.quantiles != first
    assert all(n > REFINE_STEPS for q, n in forecast.quantiles)


def test_on_a_gpu_it_is_made_within_the_prefill(
        probing: Engine, embedded_directory: Path, monkeypatch: Any) -> None:
    """
    As the sliced prefill calls it: told when the state is submitted, collected at the end.

    Two prompts whose prefills alternate keep their predictions apart.
    """
    told, probe = {}, DeviceProbe(*load_checkpoint(
        SHIPPED / 'smollm2-135m-probe.safetensors'), torch.device('cpu'))
    for there in (False, True):
        if there:
            monkeypatch.setattr(probing, 'predictor', probe)
        runs = []
        for text in (STORY, 'What is the capital of France?'):
            ids = probing.tokenize([Turn('user', text)])
            sequence = probing.open_sequence(ids, len(ids) + 60)
            forecast = LengthForecast(probing, ids, 512, TimeEstimator(coefficients(), 'fp32'))
            forecast.begin(sequence)
            while not probing.prefill_chunk(sequence):
                pass
            sequence.state_submitted(sequence)      # what this engine's prefill does not do
            probing.next_token(sequence)
            runs.append((forecast, sequence))
        monkeypatch.setattr(probe, 'predict', None)     # on the host it is not asked for
        told[there] = []
        for forecast, sequence in runs:
            sequence.submitted(sequence)
            forecast.predict(sequence)
            told[there].append((forecast.n_predicted, forecast.quantiles))
        probing.decode_step([sequence for _, sequence in runs])
        for forecast, sequence in runs:
            forecast.refine(sequence, REFINE_STEPS + 1)
            told[there].append((forecast.n_left, forecast.quantiles))
            probing.close(sequence)
    assert told[True] == told[False]


@pytest.mark.parametrize('there', [False, True])
@pytest.mark.parametrize('n_generated', [513, 514, 3001])
def test_of_a_response_that_outgrows_what_it_learnt_it_says_nothing(
        probing: Engine, monkeypatch: Any, there: bool, n_generated: int) -> None:
    """The shipped heads know lengths up to 512 tokens; ``n_max`` may be more."""
    if there:
        monkeypatch.setattr(probing, 'predictor', DeviceProbe(*load_checkpoint(
            SHIPPED / 'smollm2-135m-probe.safetensors'), torch.device('cpu')))
    ids = probing.tokenize([Turn('user', STORY)])
    sequence = probing.open_sequence(ids, len(ids) + 60)
    while not probing.prefill_chunk(sequence):
        pass
    probing.next_token(sequence)
    probing.decode_step([sequence])
    forecast = LengthForecast(probing, ids, 4000, TimeEstimator(coefficients(), 'fp32'))
    forecast.predict(sequence)
    forecast.look_again(sequence, n_generated)
    probing.close(sequence)
    assert forecast.n_left == 0 and {n for _, n in forecast.quantiles} == {4000}


def test_a_state_that_is_no_number_predicts_nothing(probing: Engine, monkeypatch: Any) -> None:
    monkeypatch.setattr(probing, 'prompt_state', lambda sequence: torch.full((576,), torch.nan))
    monkeypatch.setattr(probing, 'newest_state', lambda sequence: torch.full((576,), torch.nan))
    forecast = LengthForecast(probing, [1, 2], 60, TimeEstimator(coefficients(), 'fp32'))
    sequence = probing.open_sequence([1, 2], 60)
    forecast.predict(sequence)
    forecast.refine(sequence, REFINE_STEPS + 1)
    probing.close(sequence)
    assert (forecast.n_predicted, forecast.quantiles, forecast.n_left) == (0, (), 0)


class Reader:
    """A predictor that reads prompts, beside the prefill or after it."""

    name, state_layer, refine_layer, max_prompt_tokens = 'reader', 0, 0, 100

    def __init__(self, beside: bool) -> None:
        self.beside = beside
        self.given: list[list[int]] = []
        self.thread: Optional[threading.Thread] = None

    def predict(self, prompt_ids: list[int], state: Any = None) -> LengthDistribution:
        self.given.append(list(prompt_ids))
        self.thread = threading.current_thread()
        return LengthDistribution(np.eye(64)[19], 16)


@pytest.mark.parametrize('beside', [False, True])
def test_a_predictor_that_reads_prompts_gets_what_fits_into_the_prefill(
        embedded: Engine, monkeypatch: Any, beside: bool) -> None:
    """Head and tail of it, in a thread of its own where it may run beside the prefill."""
    reader = Reader(beside)
    monkeypatch.setattr(embedded, 'predictor', reader)
    ids = list(range(200))
    estimator = TimeEstimator(coefficients(predict_s=5e-3), 'fp32')
    forecast = LengthForecast(embedded, ids, 512, estimator)
    sequence = embedded.open_sequence(ids, 300)
    forecast.begin(sequence)
    forecast.predict(sequence)
    embedded.close(sequence)
    fits = int(estimator.prefill_s(200) / 5e-3)         # 42 of 200 tokens
    assert reader.given == [ids[:fits // 2] + ids[200 - (fits - fits // 2):]]
    assert (reader.thread is not threading.current_thread()) == beside
    assert forecast.n_predicted == 32
    assert forecast.predicted_s == (0.0 if beside else estimator.predict_s(fits))


@pytest.mark.parametrize('n_prompt, most, prefill_s, expected', [
    (1000, 512, 1.0, 100),      # the law decides
    (1000, 80, 1.0, 80),        # the predictor's own limit
    (60, 512, 1.0, 60),         # the whole prompt
    (1000, 512, 0.01, 16),      # nothing fits: what is least
    (9, 512, 0.01, 9),
])
def test_n_p_is_the_largest_that_the_prefill_hides(
        n_prompt: int, most: int, prefill_s: float, expected: int) -> None:
    def law(n: int) -> float:
        return 1e-4 * n * n

    n_p = prompt_tokens_that_fit(n_prompt, most, law, prefill_s)
    assert n_p == expected
    if 16 < n_p < min(n_prompt, most):
        assert law(n_p) <= prefill_s < law(n_p + 1)


def test_its_law_is_measured_at_the_start_and_replaces_another(probing: Engine) -> None:
    law = with_predict_law(coefficients(predict_s=1.0), probing).law('predict', 'fp32')
    assert law.samples > 5 and law.seconds(0) > 0.0
    probing.predictor = None
    assert with_predict_law(coefficients(1.0), probing).law('predict', 'fp32').samples == 0


@pytest.mark.parametrize('name, message', [
    ('/nowhere/x.safetensors', 'does not exist'),
    (str(SHIPPED), 'name the checkpoint itself'),
    ('corrupt', 'corrupt'),
    (str(SHIPPED / 'smollm2-135m-probe.safetensors'), 'vocabulary of 49152 tokens'),
    ('probe', 'no predictor probe is shipped for the target'),
])
def test_what_cannot_be_used_is_refused_at_the_start(
        make_checkpoint: Any, tmp_path: Path, name: str, message: str) -> None:
    if name == 'corrupt':
        whole = (SHIPPED / 'smollm2-135m-probe.safetensors').read_bytes()
        (tmp_path / 'x.safetensors').write_bytes(whole[:-100])
        name = str(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        Engine.load(Load(str(_tiny(make_checkpoint)), device='cpu', predictor=name))


def test_a_model_for_which_none_is_shipped_has_none(make_checkpoint: Any) -> None:
    assert Engine.load(Load(str(_tiny(make_checkpoint)), device='cpu')).predictor is None


_MADE: list[Path] = []


def _tiny(make_checkpoint: Any) -> Path:
    from transformers import LlamaConfig
    if not _MADE:
        _MADE.append(make_checkpoint(LlamaConfig(
            vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
            eos_token_id=256)))
    return _MADE[0]
