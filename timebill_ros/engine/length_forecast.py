# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the length predictor says about one query: before its plan, and while it decodes."""

from concurrent.futures import Future, ThreadPoolExecutor
from math import isfinite
import time
from typing import Optional, TYPE_CHECKING

from timebill_ros.budget.quantiles import PROBABILITIES, Quantiles
from timebill_ros.length_predictor.device_probe import DeviceProbe, Pending
from timebill_ros.length_predictor.shortening import prompt_tokens_that_fit, shorten
from timebill_ros.query import NS_PER_S

if TYPE_CHECKING:
    from timebill_ros.engine.engine import Engine
    from timebill_ros.engine.sequence import Sequence
    from timebill_ros.length_predictor.distribution import LengthDistribution
    from timebill_ros.time_estimator.estimator import TimeEstimator

REFINE_STEPS = 16       # decode steps between two refinements


class LengthForecast:
    """
    The predicted response length of one query; without a predictor nothing is ever known.

    On a GPU a predictor runs beside the prefill, on a stream of its own: one that reads the prompt
    from the beginning, one that reads the target's state as soon as the prefill has computed that;
    elsewhere right after the prefill. What a prediction adds to the critical path is measured
    around ``predict``.
    """

    def __init__(
        self, engine: 'Engine', prompt_ids: list[int], cap: int, estimator: 'TimeEstimator'
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
        self._running: Optional[Future['LengthDistribution']] = None    # in another thread
        self._begun: Optional[Pending] = None                           # on the GPU
        self._predicted = False
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

    def begin(self, sequence: 'Sequence') -> None:
        """Let a predictor that can run beside the prefill of ``sequence`` do so."""
        if isinstance(self._predictor, DeviceProbe):
            sequence.state_submitted, sequence.submitted = self._probe, self._collect
        elif self._predictor is not None and self._predictor.beside:
            self._running = _BESIDE.submit(self._predictor.predict, self._given)

    def _probe(self, sequence: 'Sequence') -> None:
        state = self._engine.prompt_state(sequence)
        if isinstance(self._predictor, DeviceProbe) and state is not None:
            self._begun = self._predictor.begin(state)

    def _collect(self, sequence: 'Sequence') -> None:
        """Take the prediction while the GPU is at the layers behind the tapped one."""
        if self._begun is not None:
            self._take(self._begun.result())
            self._begun = None

    def predict(self, sequence: 'Sequence') -> None:
        """Predict: the prefill of ``sequence`` is over and its first token is chosen."""
        predictor = self._predictor
        if predictor is None:
            return
        began_ns = time.perf_counter_ns()
        if self._running is not None:
            self._take(self._running.result())
        elif not self._predicted:
            state = self._engine.prompt_state(sequence) if predictor.state_layer else None
            self._take(
                predictor.predict(self._given, None if state is None else state.cpu().numpy()))
        self.seconds = (time.perf_counter_ns() - began_ns) / NS_PER_S

    def _take(self, said: 'LengthDistribution') -> None:
        self._predicted = True
        if isfinite(said.mean()):   # else nothing is predicted, and the cap is the worst case
            self.n_predicted = said.n_hat(self._cap)
            self.quantiles = said.quantiles(PROBABILITIES, self._cap)

    def refine(self, sequence: 'Sequence', n_generated: int) -> None:
        """
        Look again, if it is time to: after every ``REFINE_STEPS`` decode steps.

        ``n_predicted`` stays what the plan was made with; ``quantiles`` and ``n_left`` follow.
        """
        if not self._refines:
            return
        if self.n_left > 1:
            self.n_left -= 1
        if self.is_due(n_generated):
            self.look_again(sequence, n_generated)

    def is_due(self, n_generated: int) -> bool:
        """Tell whether it is time to look again, with so many tokens generated."""
        return self._refines and n_generated > 1 and (n_generated - 1) % REFINE_STEPS == 0

    def look_again(self, sequence: 'Sequence', n_generated: int) -> None:
        """
        Refine now, from the state of the newest decode step.

        Beside the next step a GPU would take longer: a step's kernel wants all of it.
        """
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
        self.n_left = said.n_left(n_generated, self._cap)


# One thread for every query: they take turns with the engine anyway.
_BESIDE = ThreadPoolExecutor(max_workers=1, thread_name_prefix='length-predictor')
