# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the length predictor says about one query: before its plan, and while it decodes."""

from concurrent.futures import Future, ThreadPoolExecutor
from math import isfinite
import time
from typing import List, Optional, TYPE_CHECKING

from timebill_ros.budget.joint import PROBABILITIES, Quantiles
from timebill_ros.length_predictor.device_probe import DeviceProbe
from timebill_ros.length_predictor.shortening import prompt_tokens_that_fit, shorten

if TYPE_CHECKING:
    from timebill_ros.engine.engine import Engine
    from timebill_ros.engine.sequence import Sequence
    from timebill_ros.length_predictor.distribution import LengthDistribution
    from timebill_ros.time_estimator.estimator import TimeEstimator

REFINE_STEPS = 16       # decode steps between two refinements
_NS = 1_000_000_000


class LengthForecast:
    """
    The predicted response length of one query; without a predictor nothing is ever known.

    A predictor that reads the prompt runs beside the prefill where it can (a stream of its own on
    a GPU), else right after it. One that reads the target's state runs after the prefill; on a GPU
    the engine has begun it there (``Sequence.length``). What it adds to the critical path is
    measured around ``predict``.
    """

    def __init__(
        self, engine: 'Engine', prompt_ids: List[int], cap: int, estimator: 'TimeEstimator'
    ) -> None:
        """Prepare for a prompt whose response is at most ``cap`` tokens long."""
        self.n_predicted = 0                # N_hat, tokens; 0 = not predicted
        self.quantiles: Quantiles = ()      # of the whole response's length
        self.n_left = 0                     # refined: expected tokens to come; 0 = not refined
        self.n_given = 0                    # N_p: tokens of the prompt that the predictor reads
        self.seconds = 0.0                  # that the prediction added
        self.predicted_s = 0.0              # what it was expected to take
        self._engine = engine
        self._predictor = engine.predictor
        self._cap = cap
        self._given = prompt_ids
        self._running: Optional[Future['LengthDistribution']] = None
        self._refines = False
        predictor = self._predictor
        if predictor is None:
            return
        self._refines = predictor.refine_layer > 0
        if predictor.max_prompt_tokens:
            self.n_given = prompt_tokens_that_fit(
                len(prompt_ids), predictor.max_prompt_tokens, estimator.predict_s,
                estimator.prefill_s(len(prompt_ids)))
            self._given = shorten(prompt_ids, self.n_given)
        # beside the prefill nothing is left to wait for: N_p was chosen so
        self.predicted_s = 0.0 if predictor.beside else estimator.predict_s(self.n_given)

    @property
    def name(self) -> str:
        """The predictor's name; empty without one."""
        return self._predictor.name if self._predictor is not None else ''

    def begin(self) -> None:
        """Let a predictor that can run beside the prefill begin: the prefill is about to."""
        if self._predictor is not None and self._predictor.beside:
            self._running = _BESIDE.submit(self._predictor.predict, self._given)

    def predict(self, sequence: 'Sequence') -> None:
        """Predict: the prefill of ``sequence`` is over and its first token is chosen."""
        predictor = self._predictor
        if predictor is None:
            return
        began_ns = time.perf_counter_ns()
        running = self._running or sequence.length
        if running is not None:
            said = running.result()
        else:
            state = self._engine.prompt_state(sequence) if predictor.state_layer else None
            said = predictor.predict(self._given, None if state is None else state.cpu().numpy())
        if isfinite(said.mean()):   # else nothing is predicted, and the cap is the worst case
            self.n_predicted = said.n_hat(self._cap)
            self.quantiles = said.quantiles(PROBABILITIES, self._cap)
        self.seconds = (time.perf_counter_ns() - began_ns) / _NS

    def refine(self, sequence: 'Sequence', n_generated: int) -> None:
        """
        Look again, if it is time to: after every ``REFINE_STEPS`` decode steps.

        ``n_predicted`` stays what the plan was made with; ``quantiles`` and ``n_left`` follow.
        """
        if not self._refines:
            return
        if (n_generated - 1) % REFINE_STEPS:
            if self.n_left > 1:
                self.n_left -= 1
            return
        if n_generated > 1:
            self.look_again(sequence, n_generated)

    def look_again(self, sequence: 'Sequence', n_generated: int) -> None:
        """Refine now, from the state of the newest decode step."""
        predictor, prompt = self._predictor, self._engine.prompt_state(sequence)
        newest = self._engine.newest_state(sequence)
        if predictor is None or newest is None or prompt is None:
            return
        if isinstance(predictor, DeviceProbe):
            said = predictor.begin_refine(newest, n_generated - 1, prompt).result()
        else:
            said = predictor.refine(newest.cpu().numpy(), n_generated - 1, prompt.cpu().numpy())
        if not isfinite(said.mean()):
            return      # a state that is no number says nothing; the forecast stays
        self.quantiles = said.quantiles(PROBABILITIES, self._cap)
        whole = min(round(said.mean()), self._cap)
        self.n_left = max(1, whole - n_generated)


# One thread for every query: they take turns with the engine anyway.
_BESIDE = ThreadPoolExecutor(max_workers=1, thread_name_prefix='length-predictor')
