# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The probe's arithmetic in torch says what the one in numpy says; on CUDA its recording does."""

import numpy as np
import pytest
import torch

from timebill_ros.length_predictor.checkpoint import load_checkpoint
from timebill_ros.length_predictor.device_probe import DeviceProbe
from timebill_ros.length_predictor.predictor import load_predictor, ProbePredictor
from timebill_ros.length_predictor.serving import SHIPPED

_PROBE = SHIPPED / 'smollm2-135m-probe.safetensors'
_DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs CUDA'))]


@pytest.fixture(scope='module')
def on_host():
    return ProbePredictor(*load_checkpoint(_PROBE))


@pytest.fixture(scope='module', params=_DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(scope='module')
def on_device(device):
    return DeviceProbe(*load_checkpoint(_PROBE), device)


def _states(on_host, count):
    """States as training saw them, one of them far outside."""
    rng = np.random.default_rng(7)
    head = on_host._head
    states = head.mean + head.scale * rng.normal(size=(count, 576)).astype(np.float32)
    states[-1] += 100 * head.scale
    return states.astype(np.float32)


def test_a_prediction_is_the_one_made_on_the_host(on_host, on_device, device):
    for state in _states(on_host, 5):
        expected = on_host.predict([], state)
        said = on_device.begin(torch.from_numpy(state).to(device)).result()
        np.testing.assert_allclose(said.pmf, expected.pmf, atol=2e-4)
        assert said.pmf.sum() == pytest.approx(1.0) and said.width == expected.width
        assert abs(said.mean() - expected.mean()) < 0.2


def test_a_refinement_is_the_one_made_on_the_host(on_host, on_device, device):
    prompt, newest = _states(on_host, 2)[:2]
    for n_generated in (1, 16, 300):
        expected = on_host.refine(newest, n_generated, prompt)
        there = [torch.from_numpy(state).to(device) for state in (newest, prompt)]
        said = on_device.begin_refine(there[0], n_generated, there[1]).result()
        np.testing.assert_allclose(said.pmf, expected.pmf, atol=2e-4)
        assert said.quantile(1e-6) > n_generated


def test_a_state_that_is_no_number_is_seen(on_host, on_device, device):
    """The engine drops such a forecast (see LengthForecast.predict)."""
    said = on_device.begin(torch.full((576,), float('nan'), device=device)).result()
    assert not np.isfinite(said.mean())
    again = on_device.begin(torch.from_numpy(_states(on_host, 2)[0]).to(device)).result()
    assert np.isfinite(again.mean())


def test_a_predictor_for_a_cpu_stays_on_the_host(on_host):
    card = on_host.card
    loaded = load_predictor(_PROBE, card.target, card.vocab_size, card.d_model, device='cpu')
    assert type(loaded) is ProbePredictor
