# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The probe on a GPU: from a state to a calibrated distribution without a word from the host."""

from typing import Dict, Optional

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

from timebill_ros.length_predictor.checkpoint import Card
from timebill_ros.length_predictor.distribution import Calibration, LengthDistribution
from timebill_ros.length_predictor.head import CLIP_DEVIATIONS, Head
from timebill_ros.length_predictor.predictor import ProbePredictor

_WARM_UPS = 2       # before a recording: libraries set themselves up


class DeviceProbe(ProbePredictor):
    """
    A probe whose heads also run where the target's states are, beside the target.

    ``begin`` and ``begin_refine`` take states on the device and return at once; what they return
    waits for the answer. Copying a state to the host and multiplying there costs a GPU's server
    more than the whole prediction costs the GPU.
    """

    def __init__(
        self, card: Card, tensors: Dict[str, NDArray[np.float32]], device: torch.device
    ) -> None:
        """Put the heads on ``device`` (a CPU only in tests)."""
        super().__init__(card, tensors)
        self._on_device = DeviceHead(self._head, self._calibration, device)
        self._refine_on_device = None
        if card.refine_layer:
            self._refine_on_device = DeviceHead(
                self._refine_head, self._refine_calibration, device)

    def begin(self, state: Tensor) -> 'Pending':
        """Start ``predict`` of a state [d_model] on the device, float32."""
        return self._on_device.begin(state)

    def begin_refine(self, state: Tensor, n_generated: int, prompt_state: Tensor) -> 'Pending':
        """Start ``refine`` of states [d_model] on the device, float32."""
        if self._refine_on_device is None:
            raise ValueError('this probe was trained without states of decode steps')
        return self._refine_on_device.begin(state, prompt_state, n_generated)


class Pending:
    """A prediction under way; to be asked for before the next one of its head begins."""

    def __init__(self, head: 'DeviceHead', n_generated: int) -> None:
        self._head, self._n_generated = head, n_generated

    def result(self) -> LengthDistribution:
        """Wait for the distribution of the whole N."""
        said = LengthDistribution(self._head.wait(), self._head.width)
        return said.shift(self._n_generated) if self._n_generated else said


class DeviceHead:
    """
    One head with its calibration; on a GPU a recorded graph on a stream of its own.

    It computes what ``Head.of_one`` and ``Calibration.distribution`` compute in numpy.
    """

    @torch.inference_mode()
    def __init__(self, head: Head, calibration: Calibration, device: torch.device) -> None:
        """Copy the arrays to the device and record the computation."""
        def put(values: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        members, hidden, width = head.w1.shape
        self.width = calibration.buckets.width
        self._mean, self._inverse = put(head.mean), put((1.0 / head.scale).astype(np.float32))
        self._w1, self._b1 = put(head.w1.reshape(members * hidden, width)), put(head.b1.ravel())
        self._w2, self._b2 = put(head.w2), put(head.b2[:, :, None])
        self._within, self._knots = put(calibration.within), put(calibration.knots)
        self._class_of_length = put(calibration.class_of_length)
        cap = calibration.buckets.cap
        self._features = torch.zeros(width, device=device)
        self._ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)
        on_gpu = device.type == 'cuda'
        self._pmf = torch.zeros(cap, dtype=torch.float64, pin_memory=on_gpu)
        self._graph: Optional[torch.cuda.CUDAGraph] = None
        if on_gpu:
            self._stream = torch.cuda.Stream(device)
            self._done = torch.cuda.Event()
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    self._compute()
            self._stream.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=self._stream):
                self._compute()

    @torch.inference_mode()
    def begin(
        self, state: Tensor, prompt_state: Optional[Tensor] = None, n_generated: int = 0
    ) -> Pending:
        """Start on a state, or on the features of ``predictor.refine_features``."""
        if self._graph is None:
            self._take(state, prompt_state, n_generated)
            self._compute()
        else:
            self._stream.wait_stream(torch.cuda.current_stream(state.device))
            with torch.cuda.stream(self._stream):
                self._take(state, prompt_state, n_generated)
                self._graph.replay()
                self._done.record(self._stream)
        return Pending(self, n_generated)

    def wait(self) -> NDArray[np.float64]:
        """Return the distribution [cap] over lengths as soon as it has come."""
        if self._graph is not None:
            self._done.synchronize()
        return self._pmf.numpy().copy()

    def _take(self, state: Tensor, prompt_state: Optional[Tensor], n_generated: int) -> None:
        if prompt_state is None:
            self._features.copy_(state)
            return
        d_model = len(state)
        self._features[:d_model].copy_(state)
        self._features[d_model:-1].copy_(prompt_state)
        self._features[-1:].fill_(float(np.log1p(n_generated)))

    def _compute(self) -> None:
        """Compute from the features to the distribution, which goes to the host's buffer."""
        x = ((self._features - self._mean) * self._inverse).clamp_(
            -CLIP_DEVIATIONS, CLIP_DEVIATIONS)
        hidden = torch.nn.functional.silu(torch.addmv(self._b1, self._w1, x))
        logits = torch.baddbmm(self._b2, self._w2, hidden.view(len(self._w2), -1, 1))
        classes = logits[:, :, 0].double().softmax(-1).mean(0)
        cumulated = (classes[self._class_of_length] * self._within).cumsum(0)
        at = cumulated.clamp(0.0, 1.0) * (len(self._knots) - 1)
        # clamped as an index too: a state that is no number must not read out of bounds
        index = at.long().clamp_(0, len(self._knots) - 2)
        mapped = torch.lerp(self._knots[index], self._knots[index + 1], at - index)
        mapped = torch.cat([self._ends[:1], mapped[:-1], self._ends[1:]])
        self._pmf.copy_(mapped.diff(), non_blocking=True)
