# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The decision theta = (tier, alpha, cap) for one query: a pure function of its recorded inputs.

Policies: ``joint`` takes the tier, eviction ratio and cap of least expected loss (``joint``);
``paper`` turns the one knob of TimeBill, the smallest eviction ratio with which the worst case
fits; ``fixed`` evicts the same share of every prompt and decodes with the same tier. All decide
once the prefill is over, with the time that is really left then (the paper decides with the
predicted prefill time).
"""

from dataclasses import dataclass, fields
from math import nan
from typing import Any

from timebill_ros.budget.alpha import AlphaChoice, raw_alpha, select_alpha
from timebill_ros.budget.joint import choose, Theta
from timebill_ros.budget.kept import kept_tokens, least_alpha, SNAPKV_WINDOW
from timebill_ros.budget.pessimism import PESSIMISM, worst_length
from timebill_ros.budget.quality import NOMINAL, QualityProfile
from timebill_ros.budget.quantiles import Quantiles
from timebill_ros.budget.tier_times import Situation, Weights
from timebill_ros.budget.times import PlannedTimes
from timebill_ros.query import ALPHA_MAX
from timebill_ros.time_estimator import laws
from timebill_ros.time_estimator.estimator import TimeEstimator, worst_factor
from timebill_ros.time_estimator.laws import Behind, Law

POLICIES = ('joint', 'paper', 'fixed')


@dataclass(frozen=True)
class PlannerConfig:
    """The server's planning parameters (``Load.policy``)."""

    policy: str = 'joint'               # one of POLICIES
    fixed_alpha: float = 0.0            # eviction ratio of the policy "fixed", 0..ALPHA_MAX
    pessimistic_factor: float = 5.0     # k >= 1: worst-case length / predicted length (paper: 5)
    worst_case_times: bool = True       # plan with worst-case times; False = expected (the paper)
    window: int = SNAPKV_WINDOW         # observation window of the eviction, tokens
    least_gain: float = 0.05            # share of decoding that an eviction short of N_W must save
    fixed_tier: str = ''                # tier of the policy "fixed"; '' = the best allowed
    truncation_loss: float = 10.0       # lambda of ``joint``, at least 1
    time_factor: float = 1.0            # learned, >= 1: on all worst-case times
    pessimism: str = 'fixed'            # one of PESSIMISM: whether the two factors are learned
    miss_rate_target: float = 0.05      # delta: share of queries that may lie beyond each

    def __post_init__(self) -> None:
        """Refuse a value out of its limits; raises ValueError that names field, value and limit."""
        if self.policy not in POLICIES:
            raise ValueError(f'policy is {self.policy!r}, must be one of {", ".join(POLICIES)}')
        if not 0.0 <= self.fixed_alpha <= ALPHA_MAX:
            raise ValueError(f'fixed_alpha is {self.fixed_alpha}, must be within 0 to {ALPHA_MAX}')
        if not self.pessimistic_factor >= 1.0:
            raise ValueError(f'pessimistic_factor is {self.pessimistic_factor}, must be at least 1')
        if not 0.0 <= self.least_gain <= 1.0:
            raise ValueError(f'least_gain is {self.least_gain}, must be within 0 to 1')
        if self.pessimism not in PESSIMISM:
            raise ValueError(
                f'pessimism is {self.pessimism!r}, must be one of {", ".join(PESSIMISM)}')
        if not 0.0 < self.miss_rate_target < 1.0:
            raise ValueError(
                f'miss_rate_target is {self.miss_rate_target}, must be between 0 and 1')
        for name in ('truncation_loss', 'time_factor'):
            if not getattr(self, name) >= 1.0:
                raise ValueError(f'{name} is {getattr(self, name)}, must be at least 1')

    @property
    def weights(self) -> Weights:
        """Return what the policy ``joint`` reads of it."""
        return Weights(
            self.worst_case_times, self.truncation_loss, self.least_gain, self.time_factor)

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
    quality: QualityProfile = NOMINAL   # what tiers and evictions of this model cost


@dataclass(frozen=True)
class PlanInputs:
    """What a plan is made from, beside configuration and coefficients. Lengths in tokens."""

    n_prompt: int           # N_x
    cap: int                # longest response: the client's, the server's, what the context leaves
    budget_left_s: float    # from the moment of planning to the plan deadline
    alpha_max: float        # largest eviction ratio that the client allows
    n_predicted: int = 0    # predicted response length; 0 = no predictor ran
    tiers: tuple[str, ...] = ()     # allowed, best first; () = the estimator's own alone
    quantiles: Quantiles = ()       # of the predicted length: ascending (probability, tokens)
    may_trade: bool = True          # joint may plan for less than N_W (not GUARANTEED)
    may_cap: bool = True            # a cap of the planner's own may end the response (KILL)
    width: int = 1                  # sequences in each decode step


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
    quality_loss: float = nan           # expected: of tier and alpha, and of a response cut short

    @property
    def predicted_rest_s(self) -> float:
        """Time from the plan to the end with the predicted length; NaN = none predicted."""
        return self.predicted_evict_s + self.predicted_decode_s + self.predicted_overhead_s

    @property
    def predicted_rest_worst_s(self) -> float:
        """Time from the plan to the end with the worst-case length."""
        return self.predicted_evict_s + self.predicted_decode_worst_s + self.predicted_overhead_s


def plan(
        inputs: PlanInputs, estimator: TimeEstimator, config: PlannerConfig,
        quality: QualityProfile = NOMINAL) -> Plan:
    """Decide theta for a query whose prefill is over."""
    n_worst = worst_length(inputs.n_predicted, config.pessimistic_factor, inputs.cap)
    if config.policy == 'joint':
        return _joint_plan(inputs, estimator, config, quality, n_worst)
    tier = (inputs.tiers or (estimator.tier,))[0]
    if config.policy == 'fixed' and config.fixed_tier in inputs.tiers:
        tier = config.fixed_tier
    estimator = estimator.for_tier(tier)
    left_s = inputs.budget_left_s - _beside_s(PlannedTimes(estimator, config), inputs, n_worst)
    choice = _choose(inputs, estimator, config, n_worst, left_s)
    return predicted(
        inputs, estimator, config, choice, inputs.cap, n_worst,
        quality.loss(tier, choice.alpha, inputs.n_prompt))


def predicted(
        inputs: PlanInputs, estimator: TimeEstimator, config: PlannerConfig, choice: AlphaChoice,
        cap: int, n_worst: int, loss: float) -> Plan:
    """Return the plan of a choice with its predicted times; ``estimator`` is of its tier."""
    worst = PlannedTimes(estimator, config)
    expected = min(inputs.n_predicted, cap)
    n_kept, width, behind = choice.n_kept, inputs.width, Behind(inputs.n_prompt)
    return Plan(
        tier=estimator.tier, alpha=choice.alpha, alpha_raw=choice.alpha_raw, n_kept=n_kept,
        cap=cap, n_worst=n_worst, feasible=choice.fits,
        predicted_evict_s=worst.evict_s(inputs.n_prompt) if n_kept < inputs.n_prompt else 0.0,
        predicted_decode_s=(
            estimator.decode_s(n_kept, expected - 1, width=width, behind=behind)
            if expected else nan),
        predicted_decode_worst_s=worst.decode_s(n_kept, n_worst - 1, behind, width),
        predicted_overhead_s=worst.overhead_s(n_worst), quality_loss=loss)


def _joint_plan(
        inputs: PlanInputs, estimator: TimeEstimator, config: PlannerConfig,
        quality: QualityProfile, n_worst: int) -> Plan:
    tiers = inputs.tiers or (estimator.tier,)
    theta: Theta = choose(
        Situation(
            n_prompt=inputs.n_prompt, n_kept=inputs.n_prompt, n_generated=1, n_worst=n_worst,
            cap=inputs.cap, budget_left_s=inputs.budget_left_s, alpha_max=inputs.alpha_max,
            quantiles=inputs.quantiles, may_trade=inputs.may_trade, may_cap=inputs.may_cap,
            width=inputs.width, window=config.window),
        estimator, tiers, quality, config.weights)
    estimator = estimator.for_tier(theta.tier)
    worst = PlannedTimes(estimator, config)
    after_s = inputs.budget_left_s - worst.evict_s(inputs.n_prompt) - _beside_s(
        worst, inputs, n_worst)
    alpha = min(inputs.alpha_max, least_alpha(inputs.n_prompt, theta.n_kept))
    if not theta.worst_fits and 0.0 < alpha and theta.n_kept == kept_tokens(
            inputs.n_prompt, inputs.alpha_max, config.window):
        alpha = inputs.alpha_max        # clipped, as the paper says it
    step = estimator.law(laws.DECODE_STEP, width=inputs.width)
    after_s /= _step_factor(step, config, n_worst)      # cheaper than a law that is scaled
    choice = AlphaChoice(
        alpha, raw_alpha(step, inputs.n_prompt, n_worst - 1, after_s), theta.n_kept,
        theta.worst_fits)
    return predicted(
        inputs, estimator, config, choice, theta.cap, min(n_worst, theta.cap), theta.loss)


def _choose(inputs: PlanInputs, estimator: TimeEstimator, config: PlannerConfig,
            n_worst: int, budget_s: float) -> AlphaChoice:
    step = _step(estimator, config, inputs.width, n_worst)
    evict_s = PlannedTimes(estimator, config).evict_s(inputs.n_prompt)
    if config.policy == 'paper':
        return select_alpha(
            step, inputs.n_prompt, n_worst, budget_s, inputs.alpha_max, evict_s, config.window,
            config.least_gain)
    alpha = min(config.fixed_alpha, inputs.alpha_max)
    n_kept = kept_tokens(inputs.n_prompt, alpha, config.window)
    needed_s = step.sum_steps(n_kept, n_worst - 1) + (evict_s if n_kept < inputs.n_prompt else 0.0)
    return AlphaChoice(alpha, alpha, n_kept, needed_s <= budget_s)


def _beside_s(times: PlannedTimes, inputs: PlanInputs, n_worst: int) -> float:
    """Return what ``n_worst`` tokens take that is in no sum over steps, whatever is evicted."""
    return times.overhead_s(n_worst) + times.recovery_s(inputs.n_prompt, n_worst - 1)


def _step(estimator: TimeEstimator, config: PlannerConfig, width: int, n_worst: int) -> Law:
    """Return the decode-step law to plan ``n_worst`` tokens with."""
    step = estimator.law(laws.DECODE_STEP, width=width)
    return step.scaled(_step_factor(step, config, n_worst))


def _step_factor(step: Law, config: PlannerConfig, n_worst: int) -> float:
    """Return planned over expected time of the steps of ``n_worst`` tokens."""
    if not config.worst_case_times:
        return 1.0
    return config.time_factor * worst_factor(step, n_worst - 1)
