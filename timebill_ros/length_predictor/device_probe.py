# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The probe on a GPU: from a state to a calibrated distribution without a word from the host."""

from typing import Optional

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
    more than the whole prediction costs the GPU, which has it done while the target goes on.
    """

    def __init__(
        self, card: Card, tensors: dict[str, NDArray[np.float32]], device: torch.device
    ) -> None:
        """Put the heads on ``device`` (a CPU only in tests)."""
        super().__init__(card, tensors)
        self.beside = True
        self._on_device = DeviceHead(self._head, self._calibration, device)
        self._refine_on_device = None
        if card.refine_layer:
            self._refine_on_device = DeviceHead(
                self._refine_head, self._refine_calibration, device)

    def begin(self, state: Tensor) -> 'Pending':
        """Start ``predict`` of a state [d_model], float32, that the current stream writes."""
        return self._on_device.begin(state)

    def begin_refine(self, state: Tensor, n_generated: int, prompt_state: Tensor) -> 'Pending':
        """Start ``refine`` of states [d_model], float32, that the current stream writes."""
        if self._refine_on_device is None:
            raise ValueError('this probe was trained without states of decode steps')
        return self._refine_on_device.begin(state, prompt_state, n_generated)


class Pending:
    """A prediction under way."""

    def __init__(self, head: 'DeviceHead', n_generated: int) -> None:
        self._head, self._n_generated = head, n_generated
        self._pmf: Optional[NDArray[np.float64]] = None

    def fetch(self) -> NDArray[np.float64]:
        """Wait for the probabilities [cap], and keep them."""
        if self._pmf is None:
            self._pmf = self._head.wait()
        return self._pmf

    def result(self) -> LengthDistribution:
        """Wait for the distribution of the whole N."""
        said = LengthDistribution(self.fetch(), self._head.width)
        return said.shift(self._n_generated) if self._n_generated else said


class DeviceHead:
    """
    One head with its calibration; on a GPU a recorded graph on a stream of its own.

    It computes what ``Head.of_one`` and ``Calibration.distribution`` compute in numpy, in as few
    kernels as it takes: each is shorter than its launch. So biases and averages are part of the
    products, and what comes out is the cumulated distribution.
    """

    @torch.inference_mode()
    def __init__(self, head: Head, calibration: Calibration, device: torch.device) -> None:
        """Copy the arrays to the device and record the computation."""
        def put(values: NDArray[np.generic]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).to(device)

        members, hidden, width = head.w1.shape
        n_classes = head.w2.shape[1]
        self.width = calibration.buckets.width
        # a last feature that stays 1 carries the first layer's bias
        inverse = 1.0 / head.scale
        self._scale = put(np.append(inverse, 0.0).astype(np.float32))
        self._offset = put(np.append(-head.mean * inverse, 1.0).astype(np.float32))
        self._w1 = put(np.column_stack([head.w1.reshape(-1, width), head.b1.ravel()]))
        blocks = np.zeros((members, n_classes, members, hidden), np.float32)
        for member in range(members):
            blocks[member, :, member] = head.w2[member]
        self._w2 = put(blocks.reshape(members * n_classes, members * hidden))
        self._b2 = put(head.b2.ravel())
        self._shape = members, n_classes
        # from the members' classes to the cumulated probability, in steps between two knots
        knots = calibration.knots
        n_steps = len(knots) - 1
        each = (calibration.class_of_length[:, None] == np.arange(n_classes))
        cumulated = np.cumsum(each * calibration.within[:, None], 0) * (n_steps / members)
        self._steps = put(np.tile(cumulated, members))
        rise = np.diff(knots)
        self._rise = put(rise)
        self._level = put(knots[:n_steps] - rise * np.arange(n_steps))
        self._features = torch.zeros(width + 1, device=device)
        on_gpu = device.type == 'cuda'
        self._said = torch.zeros(
            calibration.buckets.cap, dtype=torch.float64, pin_memory=on_gpu)
        self._newest: Optional[Pending] = None
        self._graph: Optional[torch.cuda.CUDAGraph] = None
        if on_gpu:
            self._record(device)

    def _record(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._ready, self._done = torch.cuda.Event(), torch.cuda.Event()
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
        if self._newest is not None:
            self._newest.fetch()        # whoever began it may ask later; it has the same buffers
        # on the current stream, so that the states may be overwritten by what follows there
        self._take(state, prompt_state, n_generated)
        if self._graph is None:
            self._compute()
        else:
            self._ready.record()
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(self._ready)
                self._graph.replay()
                self._done.record()
        self._newest = Pending(self, n_generated)
        return self._newest

    def wait(self) -> NDArray[np.float64]:
        """Return the distribution [cap] over lengths as soon as it has come."""
        if self._graph is not None:
            self._done.synchronize()
        pmf = self._said.numpy().copy()
        pmf[-1] = 1.0
        pmf[1:] -= pmf[:-1].copy()
        return pmf

    def _take(self, state: Tensor, prompt_state: Optional[Tensor], n_generated: int) -> None:
        d_model = len(state)
        self._features[:d_model].copy_(state)
        if prompt_state is not None:
            self._features[d_model:2 * d_model].copy_(prompt_state)
            self._features[2 * d_model].fill_(float(np.log1p(n_generated)))

    def _compute(self) -> None:
        """Compute from the features to the distribution, which goes to the host's buffer."""
        x = torch.addcmul(self._offset, self._features, self._scale)
        hidden = torch.mv(self._w1, x.clamp_(-CLIP_DEVIATIONS, CLIP_DEVIATIONS))
        logits = torch.addmv(self._b2, self._w2, torch.nn.functional.silu(hidden, inplace=True))
        classes = logits.view(self._shape).softmax(-1, dtype=torch.float64)
        at = torch.mv(self._steps, classes.view(-1))
        # clamped as an index: a state that is no number must not read out of bounds
        step = at.long().clamp_(0, len(self._rise) - 1)
        cumulated = torch.addcmul(self._level[step], self._rise[step], at)
        self._said.copy_(cumulated, non_blocking=True)
