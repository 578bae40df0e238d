# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Changing theta while decoding: pure functions of where a query stands and how fast its steps were.

Tighten (evict further, drop a tier, shorten the cap) once half of the margin between expected and
worst-case times is used up: a plan often fills its budget to the brim, and then the first slow step
is no reason to evict what cannot come back. What is chosen then fits the whole worst case at the
pace of the newest steps, and has ``SETTLE_STEPS`` to show. Relax (a better tier, a longer cap) only
when it would fit with ``RELAX_MARGIN`` to spare and ``HOLD_STEPS`` steps have passed since the last
change, so that noise cannot make it flap. A cap is moved only
when it is about to bind: until then nothing depends on it. Policies other than ``joint`` plan once.
"""

from collections import deque
from dataclasses import dataclass, replace
from statistics import median

from timebill_ros.budget.joint import choose, Theta
from timebill_ros.budget.kept import least_alpha
from timebill_ros.budget.pessimism import worst_length
from timebill_ros.budget.planner import Plan, PlanInputs, Planning
from timebill_ros.budget.quantiles import given_longer_than
from timebill_ros.budget.tier_times import Situation, TierTimes

REPLAN_STEPS = 8        # decode steps between two looks
SETTLE_STEPS = 16       # steps after a change before anything is tightened again
HOLD_STEPS = 32         # and before anything is relaxed
TIGHTEN_MARGIN = 0.5    # share of the margin to the worst case that has to be left
RELAX_MARGIN = 0.1      # share of the time left that a relaxed theta must leave over
_BINDS_WITHIN = 2 * REPLAN_STEPS    # tokens: a cap no farther away is about to bind
_LEAST_EXTENSION = 4    # tokens: a cap is not moved up for less
_NEWEST_STEPS = 15


@dataclass(frozen=True)
class RunState:
    """A decoding query, between two steps. Lengths in tokens."""

    inputs: PlanInputs      # as for a plan made now: ``budget_left_s`` counts from now
    plan: Plan              # in force
    n_generated: int
    n_kept: int             # prompt positions in the cache
    n_left_predicted: int = 0   # refined: what is still to come; 0 = no refinement
    slowdown: float = 1.0   # measured over expected time of the newest steps (``Pace``)
    changed_at: int = 0     # ``n_generated`` at the last change


@dataclass(frozen=True)
class Replanned:
    """What to do from here on."""

    plan: Plan | None       # the new plan; None = stay
    at_risk: bool           # even the cheapest theta is predicted to miss
    why: str = ''


class Pace:
    """How the newest decode steps compare with their law; an outlier alone does not move it."""

    def __init__(self) -> None:
        """Start without a step."""
        self._ratios: deque[float] = deque(maxlen=_NEWEST_STEPS)

    def add(self, measured_s: float, expected_s: float) -> None:
        """Take a step; what one late step cost is in the time left already."""
        if expected_s > 0.0:
            self._ratios.append(measured_s / expected_s)

    @property
    def slowdown(self) -> float:
        """The median of measured over expected; 1 until enough steps were seen."""
        return median(self._ratios) if len(self._ratios) == _NEWEST_STEPS else 1.0

    @property
    def slowest(self) -> float:
        """The second largest of measured over expected: a slow step, no outlier; 0 = none yet."""
        return sorted(self._ratios)[-2] if len(self._ratios) > 1 else 0.0


def replan(state: RunState, planning: Planning) -> Replanned:
    """Look again at a decoding query."""
    config, plan = planning.config, state.plan
    at = _situation(state, config.pessimistic_factor, config.window)
    now = TierTimes(planning.estimator, plan.tier, at, config.weights)
    if config.policy != 'joint':
        return Replanned(None, now.needed_s(state.n_kept, at.n_worst) > at.budget_left_s)
    likely = TierTimes(
        planning.estimator, plan.tier, replace(at, margin=TIGHTEN_MARGIN), config.weights)
    settling = state.changed_at > 0 and state.n_generated - state.changed_at < SETTLE_STEPS
    fits = likely.needed_s(state.n_kept, at.n_worst) <= at.budget_left_s
    if fits or settling:
        found = _better_tier(at, state, planning) or _cap_about_to_bind(at, state, now)
        return found if fits else replace(found, at_risk=not plan.feasible)
    tiers = state.inputs.tiers or (planning.estimator.tier,)
    if plan.tier in tiers:      # this is no time for a better one
        tiers = tiers[tiers.index(plan.tier):]
    theta = choose(at, planning.estimator, tiers, planning.quality, config.weights)
    at_risk = not theta.worst_fits
    if (theta.tier, theta.n_kept) == (plan.tier, state.n_kept):
        return replace(_cap_about_to_bind(at, state, now), at_risk=at_risk)
    times = TierTimes(planning.estimator, theta.tier, at, config.weights)
    evict_s = (times.needed_s(theta.n_kept, state.n_generated) - times.overhead_s(
        state.n_generated) if theta.n_kept < state.n_kept else 0.0)
    return Replanned(_changed(state, at, theta, evict_s), at_risk, 'worst case no longer fits')


def tokens_that_fit(state: RunState, planning: Planning) -> int:
    """Return how many more tokens fit in the worst case with the plan in force, at least 0."""
    config = planning.config
    at = _situation(state, config.pessimistic_factor, config.window)
    times = TierTimes(planning.estimator, state.plan.tier, at, config.weights)
    return times.longest(state.n_kept, state.n_generated, at.cap) - state.n_generated


def changes(old: Plan, new: Plan) -> list[tuple[str, str, str]]:
    """Return (what, before, after) for everything that a change of theta changes."""
    every = (
        ('tier', old.tier, new.tier), ('alpha', f'{old.alpha:.2f}', f'{new.alpha:.2f}'),
        ('cap', str(old.cap), str(new.cap)))
    return [each for each in every if each[1] != each[2]]


def _situation(state: RunState, factor: float, window: int) -> Situation:
    inputs, done = state.inputs, state.n_generated
    if state.n_left_predicted > 0:
        n_worst = min(inputs.cap, done + worst_length(state.n_left_predicted, factor, inputs.cap))
    else:
        n_worst = worst_length(inputs.n_predicted, factor, inputs.cap)
    if n_worst <= done:
        n_worst = inputs.cap        # longer than its worst case: now the cap is
    return Situation(
        inputs.n_prompt, state.n_kept, done, n_worst, inputs.cap, inputs.budget_left_s,
        inputs.alpha_max, given_longer_than(inputs.quantiles, done), inputs.may_trade,
        inputs.may_cap, evicted=state.n_kept < inputs.n_prompt, n_paid=done,
        slowdown=state.slowdown, width=inputs.width, window=window)


def _better_tier(at: Situation, state: RunState, planning: Planning) -> Replanned | None:
    """Return a change to a tier of less loss that fits with room to spare; None = there is none."""
    tiers = state.inputs.tiers or (planning.estimator.tier,)
    if state.plan.tier == tiers[0] or state.n_generated - state.changed_at < HOLD_STEPS:
        return None
    roomy = replace(
        at, budget_left_s=(1.0 - RELAX_MARGIN) * at.budget_left_s, alpha_max=0.0, may_trade=False,
        may_cap=False)
    theta = choose(
        roomy, planning.estimator, tiers, planning.quality, planning.config.weights)
    alpha = least_alpha(at.n_prompt, at.n_kept)
    loss = planning.quality.loss(state.plan.tier, alpha, at.n_prompt)
    if not theta.worst_fits or theta.loss >= loss:
        return None
    times = TierTimes(planning.estimator, theta.tier, at, planning.config.weights)
    cap = times.longest(state.n_kept, at.n_worst, at.cap) if at.may_cap else at.cap
    return Replanned(
        _changed(state, at, replace(theta, cap=cap), 0.0), False, 'there is time to spare')


def _cap_about_to_bind(at: Situation, state: RunState, now: TierTimes) -> Replanned:
    """Move the cap to what fits with the present tier and cache, once it matters."""
    stay = Replanned(None, False)
    if not at.may_cap:
        return stay
    cap = now.longest(state.n_kept, state.n_generated, at.cap)
    near = min(cap, state.plan.cap) - state.n_generated <= _BINDS_WITHIN
    last = state.n_generated >= state.plan.cap - 1      # then every token counts
    least = min(at.cap, state.plan.cap + (1 if last else _LEAST_EXTENSION))
    moved = cap < state.plan.cap or cap >= least
    if not near or not moved or cap == state.plan.cap:
        return stay
    why = 'time runs out' if cap < state.plan.cap else 'there is time to spare'
    made = replace(state.plan, cap=cap, n_worst=min(at.n_worst, cap), predicted_evict_s=0.0)
    return Replanned(made, False, why)


def _changed(state: RunState, at: Situation, theta: Theta, evict_s: float) -> Plan:
    """
    Return the plan in force with another theta.

    Its predicted times stay those that were predicted, but for ``predicted_evict_s``: that of the
    eviction which is due now.
    """
    alpha = state.plan.alpha
    if theta.n_kept < state.n_kept:
        alpha = min(at.alpha_max, least_alpha(at.n_prompt, theta.n_kept))
    return replace(
        state.plan, tier=theta.tier, alpha=alpha, n_kept=theta.n_kept, cap=theta.cap,
        n_worst=min(at.n_worst, theta.cap), feasible=theta.worst_fits,
        predicted_evict_s=evict_s, quality_loss=theta.loss)
