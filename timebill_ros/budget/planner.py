# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The decision theta = (tier, alpha, cap) for one query: a pure function of its recorded inputs.

Policies: ``paper`` turns the one knob of TimeBill, the smallest eviction ratio with which the
worst case fits; ``fixed`` evicts the same share of every prompt. Both decide once the prefill is
over, with the time that is really left then (the paper decides with the predicted prefill time).
"""

from dataclasses import dataclass, fields
from math import nan
from typing import Any

from timebill_ros.budget.alpha import AlphaChoice, select_alpha
from timebill_ros.budget.kept import kept_tokens, SNAPKV_WINDOW
from timebill_ros.budget.pessimism import worst_length
from timebill_ros.time_estimator import laws
from timebill_ros.time_estimator.estimator import TimeEstimator, worst_factor

POLICIES = ('paper', 'fixed')


@dataclass(frozen=True)
class PlannerConfig:
    """The server's planning parameters (``Load.policy``)."""

    policy: str = 'paper'               # one of POLICIES
    fixed_alpha: float = 0.0            # eviction ratio of the policy "fixed", 0..0.95
    pessimistic_factor: float = 5.0     # k >= 1: worst-case length / predicted length (paper: 5)
    worst_case_times: bool = True       # plan with worst-case times; False = expected (the paper)
    window: int = SNAPKV_WINDOW         # observation window of the eviction, tokens
    least_gain: float = 0.05            # share of the worst case that a hopeless eviction must save

    def __post_init__(self) -> None:
        """Refuse a value out of its limits; raises ValueError that names field, value and limit."""
        if self.policy not in POLICIES:
            raise ValueError(f'policy is {self.policy!r}, must be one of {", ".join(POLICIES)}')
        if not 0.0 <= self.fixed_alpha <= 0.95:
            raise ValueError(f'fixed_alpha is {self.fixed_alpha}, must be within 0 to 0.95')
        if not self.pessimistic_factor >= 1.0:
            raise ValueError(f'pessimistic_factor is {self.pessimistic_factor}, must be at least 1')
        if not 0.0 <= self.least_gain <= 1.0:
            raise ValueError(f'least_gain is {self.least_gain}, must be within 0 to 1')

    @staticmethod
    def from_dict(values: dict[str, Any]) -> 'PlannerConfig':
        """Build it from ``Load.policy``; raises ValueError on an unknown name."""
        unknown = set(values) - {each.name for each in fields(PlannerConfig)}
        if unknown:
            raise ValueError(f'unknown planner parameter {sorted(unknown)[0]!r}')
        return PlannerConfig(**values)


@dataclass(frozen=True)
class Planning:
    """What a server plans its queries with; replaced as a whole when coefficients are adopted."""

    estimator: TimeEstimator
    config: PlannerConfig
    source: str                         # where the coefficients are from: profile, file or topic


@dataclass(frozen=True)
class PlanInputs:
    """What a plan is made from, beside configuration and coefficients. Lengths in tokens."""

    n_prompt: int           # N_x
    cap: int                # longest response: the client's, the server's, what the context leaves
    budget_left_s: float    # from the moment of planning to the plan deadline
    alpha_max: float        # largest eviction ratio that the client allows
    n_predicted: int = 0    # predicted response length; 0 = no predictor ran


@dataclass(frozen=True)
class Plan:
    """The decision, and every number that it was made with."""

    tier: str
    alpha: float
    alpha_raw: float
    n_kept: int
    cap: int
    n_worst: int
    feasible: bool                      # eviction, worst-case decoding and overhead fit
    predicted_evict_s: float
    predicted_decode_s: float           # with the predicted length; NaN = none predicted
    predicted_decode_worst_s: float     # with the worst-case length
    predicted_overhead_s: float

    @property
    def predicted_rest_s(self) -> float:
        """Time from the plan to the end with the predicted length; NaN = none predicted."""
        return self.predicted_evict_s + self.predicted_decode_s + self.predicted_overhead_s

    @property
    def predicted_rest_worst_s(self) -> float:
        """Time from the plan to the end with the worst-case length."""
        return self.predicted_evict_s + self.predicted_decode_worst_s + self.predicted_overhead_s


def plan(inputs: PlanInputs, estimator: TimeEstimator, config: PlannerConfig) -> Plan:
    """Decide theta for a query whose prefill is over."""
    worst = config.worst_case_times
    n_worst = worst_length(inputs.n_predicted, config.pessimistic_factor, inputs.cap)
    overhead_s = estimator.overhead_s(n_worst, worst)
    choice = _choose(inputs, estimator, config, n_worst, inputs.budget_left_s - overhead_s)
    steps = n_worst - 1
    expected = min(inputs.n_predicted, inputs.cap)
    return Plan(
        tier=estimator.tier, alpha=choice.alpha, alpha_raw=choice.alpha_raw, n_kept=choice.n_kept,
        cap=inputs.cap, n_worst=n_worst, feasible=choice.fits,
        predicted_evict_s=(
            estimator.evict_s(inputs.n_prompt, worst) if choice.n_kept < inputs.n_prompt else 0.0),
        predicted_decode_s=estimator.decode_s(choice.n_kept, expected - 1) if expected else nan,
        predicted_decode_worst_s=estimator.decode_s(choice.n_kept, steps, worst),
        predicted_overhead_s=overhead_s)


def _choose(inputs: PlanInputs, estimator: TimeEstimator, config: PlannerConfig,
            n_worst: int, budget_s: float) -> AlphaChoice:
    worst = config.worst_case_times
    step = estimator.law(laws.DECODE_STEP)
    evict_s = estimator.evict_s(inputs.n_prompt, worst)
    if worst:
        step = step.scaled(worst_factor(step, n_worst - 1))
    if config.policy == 'paper':
        return select_alpha(
            step, inputs.n_prompt, n_worst, budget_s, inputs.alpha_max, evict_s, config.window,
            config.least_gain)
    alpha = min(config.fixed_alpha, inputs.alpha_max)
    n_kept = kept_tokens(inputs.n_prompt, alpha, config.window)
    needed_s = step.sum_steps(n_kept, n_worst - 1) + (evict_s if n_kept < inputs.n_prompt else 0.0)
    return AlphaChoice(alpha, alpha, n_kept, needed_s <= budget_s)
