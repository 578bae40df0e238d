# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The profile of a real engine: a tiny checkpoint, measured in seconds."""

from typing import Any

import pytest

from timebill_ros.budget.planner import PlannerConfig, Planning
from timebill_ros.engine.engine import Engine
from timebill_ros.engine.errors import EngineError
from timebill_ros.engine.meter import EngineMeter
from timebill_ros.engine.unattended import answer, question
from timebill_ros.executor.messages import Load
from timebill_ros.query import Sampling
from timebill_ros.time_estimator.coefficients import TimingCoefficients
from timebill_ros.time_estimator.estimator import TimeEstimator
from timebill_ros.time_estimator.laws import Law
from timebill_ros.time_estimator.profiler import Effort, profile


@pytest.fixture(scope='module')
def engine(make_checkpoint: Any) -> Engine:
    from transformers import LlamaConfig
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=128,
        eos_token_id=256)
    return Engine.load(Load(str(make_checkpoint(config)), prefill_chunk=16))


def test_each_stage_takes_time_and_frees_its_place(engine: Engine) -> None:
    meter = EngineMeter(engine)
    for _ in range(3):      # more often than there are places
        assert meter.measure_prefill(40) > 0.0
        assert meter.measure_prefill(40, n_done=24) > 0.0
        assert meter.measure_prefill(44, n_done=24) > 0.0
        for steps, width in ((4, 1), (2, 3)):
            times = meter.measure_decode_step(50, steps, width=width)
            assert len(times) == steps and all(time_s > 0.0 for time_s in times)
        assert meter.measure_evict(100, 0.5) > 0.0
        assert meter.measure_reevict(100, 0.9) > 0.0
        assert meter.measure_cold(0.01) > 0.0
        assert meter.measure_overhead(5) > 0.0


def test_queries_without_a_node_share_steps_and_have_whole_records(engine: Engine) -> None:
    laws = (Law('prefill', 'constant', (0.01,)),
            Law('decode_step', 'affine', (1e-4, 1e-3), tier='fp32'))
    planning = Planning(
        TimeEstimator(TimingCoefficients(1, '', '', '', '', laws), 'fp32'),
        PlannerConfig(policy='fixed', fixed_alpha=0.5), 'profile')
    timings = answer(engine, planning, [
        (question(number, 6, Sampling()), list(range(90 + number))) for number in range(2)])
    assert [each.n_prompt for each in timings] == [90, 91]
    for each in timings:
        assert each.n_kept < each.n_prompt and each.prefill > 0.0 and each.evict > 0.0
        assert each.overhead > 0.0 and sum(part.steps for part in each.stretches) == 5
        assert any(part.width == 2 for part in each.stretches)


def test_a_query_that_fails_is_an_error_of_the_measurement(engine: Engine) -> None:
    planning = EngineMeter(engine)._planning
    with pytest.raises(EngineError, match='exceeds the context'):
        answer(engine, planning, [(question(0, 2, Sampling()), [1] * 500)])


def test_a_profile_of_a_context_as_short_as_this(engine: Engine) -> None:
    effort = Effort(max_tokens=4096, points=4, rounds=2, most_rounds=2, budget_s=60.0)
    coefficients, samples = profile(EngineMeter(engine), effort)
    assert {each.law for each in coefficients.laws} == {
        'prefill', 'decode_step', 'evict', 'reevict', 'overhead', 'cold'}
    assert {law.width for law in coefficients.laws if law.law == 'decode_step'} == {1, 2, 4}
    assert max(each.n_tokens for each in samples) < 128
    assert all(law.seconds(100) > 0.0 for law in coefficients.laws)
    assert coefficients.law('decode_step', 'fp32').tier == 'fp32'
    assert coefficients.device in coefficients.key
