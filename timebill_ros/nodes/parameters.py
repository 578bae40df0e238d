# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The parameters of the node ``timebill``: type, default, description, range, validation."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from timebill_ros.budget.pessimism import PESSIMISM
from timebill_ros.budget.planner import POLICIES
from timebill_ros.executor.messages import AUTO_TIERS, Load
from timebill_ros.query import Admission, ALPHA_MAX, Overrun

ADMISSIONS = {'best_effort': Admission.BEST_EFFORT, 'guaranteed': Admission.GUARANTEED}
OVERRUNS = {
    'kill': Overrun.KILL,
    'skip_next': Overrun.SKIP_NEXT,
    'soft_landing': Overrun.SOFT_LANDING,
}

INT_MAX = 2**31 - 1
MAX_BATCH = 8
TIERS = ('fp32', 'bf16', 'int8', 'int4')
INT16 = 'int16'        # of prefills alone


@dataclass(frozen=True)
class _Spec:
    """One parameter: a tuple of strings as ``limits`` is a choice, a pair of numbers a range."""

    name: str
    default: bool | int | float | str | list[str]
    description: str
    limits: tuple[Any, ...] | None = None
    read_only: bool = False


_SPECS = (
    # What the engine loads: fixed while it runs.
    _Spec(
        'model',
        'embedded',
        'Model directory, GGUF file, hub name, or "embedded" (SmolLM2-135M-Instruct).',
        read_only=True,
    ),
    _Spec(
        'device', 'auto', 'Device of the engine: "auto", "cpu", "cuda" or "cuda:N".', read_only=True
    ),
    _Spec(
        'dtype',
        'auto',
        'Type of weights and cache.',
        ('auto', 'float32', 'bfloat16', 'float16'),
        True,
    ),
    _Spec('threads', 0, 'CPU threads of the engine; 0 = chosen by the engine.', (0, 1024), True),
    _Spec(
        'max_context',
        0,
        'Tokens per query, prompt and response; 0 = what the model allows.',
        (0, INT_MAX),
        True,
    ),
    _Spec('n_max', 512, 'Cap on any response in tokens (N_max).', (1, INT_MAX), True),
    _Spec(
        'max_batch',
        4,
        'Queries that may be under way at once; fewer where their KV caches do not fit.',
        (1, MAX_BATCH),
        True,
    ),
    _Spec(
        'kv_memory_bytes',
        0,
        'Memory for KV caches in bytes, all queries together; 0 = what the machine has free.',
        (0, 2**62),
        True,
    ),
    _Spec(
        'gpu_memory_fraction',
        0.9,
        'Share of the memory of a GPU that the engine may take.',
        (0.05, 1.0),
        True,
    ),
    _Spec(
        'realtime_priority',
        0,
        'SCHED_FIFO priority of the thread that drives a GPU, where the system allows it; 0 = off.',
        (0, 99),
        True,
    ),
    _Spec(
        'tiers',
        [AUTO_TIERS],
        'Precisions of the weights to keep, best first: bf16 (on a CPU the one that it computes '
        'in), int8, int4; one that does not fit is left out. Without bf16 a GPU keeps no bf16 '
        'weights. auto = bf16, and on a CPU the one that takes no more memory, where the '
        'checkpoint is quantised already.',
        (AUTO_TIERS, *TIERS),
        True,
    ),
    _Spec(
        'prefill_tier',
        '',
        'What prompts are multiplied in on a CPU: int16 takes two thirds of the time and changes '
        'logits by some 1e-4, where the checkpoint is quantised already; the tiers int8 and int4 '
        'take half and change answers; empty = full precision.',
        ('', INT16, *TIERS),
        True,
    ),
    _Spec(
        'predictor',
        'default',
        'Predictor of response lengths: "default" (the shipped one for this model, if any), '
        '"probe", "slm", a checkpoint or a directory with one; empty = none.',
        read_only=True,
    ),
    _Spec(
        'prefill_chunk',
        0,
        'Tokens per prefill chunk; 0 = chosen by the engine.',
        (0, INT_MAX),
        True,
    ),
    _Spec(
        'allow_download',
        False,
        'Fetch a missing model over the network; nothing else ever uses it.',
        read_only=True,
    ),
    _Spec(
        'cache_dir',
        '',
        "Converted models and timing profiles; empty = the user's cache directory.",
        read_only=True,
    ),
    _Spec(
        'engine_python',
        '',
        'Interpreter of the engine process; empty = $TIMEBILL_ENGINE_PYTHON, else the '
        'environment made by "timebill setup-engine", else the node\'s own.',
        read_only=True,
    ),
    _Spec(
        'policy',
        'joint',
        'What a budget is spent with: tier, eviction ratio and cap together (joint), the '
        'smallest eviction ratio that fits (paper), or one theta for every query (fixed).',
        POLICIES,
        True,
    ),
    _Spec(
        'fixed_alpha', 0.0, 'Eviction ratio of the policy "fixed".', (0.0, ALPHA_MAX), True
    ),
    _Spec(
        'fixed_tier',
        '',
        'Precision tier of the policy "fixed"; empty = the best.',
        ('', *TIERS),
        True,
    ),
    _Spec(
        'truncation_loss',
        10.0,
        'What an answer cut short by a planned cap weighs against a whole one (policy "joint").',
        (1.0, 1000.0),
        True,
    ),
    _Spec(
        'pessimism',
        'fixed',
        'Whether pessimistic_factor stays as it is, or is learned together with a factor on '
        'worst-case times, so that each is exceeded by the share miss_rate_target.',
        PESSIMISM,
        True,
    ),
    _Spec(
        'miss_rate_target',
        0.05,
        'Share of queries that may exceed what the learned factors allow for.',
        (0.001, 0.5),
        True,
    ),
    _Spec(
        'pessimistic_factor',
        5.0,
        'k: worst-case response length over predicted length; where it is learned, its start.',
        (1.0, 100.0),
        True,
    ),
    _Spec(
        'worst_case_times',
        True,
        'Plan with worst-case times; false = with expected ones, as the paper does.',
        read_only=True,
    ),
    # How queries are taken: may change at any time, holds from the next query on.
    _Spec(
        'max_queue',
        8,
        'Queries that may wait beside the running one; further ones end SKIPPED.',
        (0, 10000),
    ),
    _Spec(
        'max_queue_per_client',
        0,
        'Queries of one client (goal field client_id; all without one are one client) that may '
        'wait or run; further ones end SKIPPED. 0 = no limit but max_queue.',
        (0, 10000),
    ),
    _Spec(
        'max_prompt_bytes',
        1048576,
        'Largest prompt, all turns together, in bytes of UTF-8.',
        (1, 2**25),
    ),
    _Spec(
        'default_admission',
        'best_effort',
        'Admission of goals that leave it to the server.',
        tuple(ADMISSIONS),
    ),
    _Spec(
        'default_overrun',
        'kill',
        'Overrun strategy of goals that leave it to the server.',
        tuple(OVERRUNS),
    ),
    _Spec(
        'max_overrun_s',
        2.0,
        'How long a query under skip_next may run on after its deadline, in seconds.',
        (0.001, 3600.0),
    ),
    _Spec(
        'max_clock_skew_s',
        0.1,
        'How far ahead of the system clock here the sent_at of a goal may be, in seconds.',
        (0.0, 60.0),
    ),
    _Spec(
        'alpha_max',
        0.95,
        'Largest KV cache eviction ratio of goals that leave it to the server.',
        (0.0, ALPHA_MAX),
    ),
    _Spec(
        'delivery_margin_s',
        0.05,
        'Part of every budget kept back for the way from the node to the client, in '
        'seconds; docs/delivery-margin.md says how the default was measured.',
        (0.0, 10.0),
    ),
    _Spec(
        'feedback_period_s',
        0.1,
        'Least time between two feedback messages of a query that does not stream; a '
        'change of stage or risk is told at once.',
        (0.0, 60.0),
    ),
    _Spec(
        'stream_period_s',
        0.02,
        'The same for a query that streams: a GPU writes faster than anybody reads, and every '
        'client of the server receives every feedback message.',
        (0.0, 60.0),
    ),
    # The watch over the engine.
    _Spec(
        'engine_timeout_s',
        10.0,
        'A ready engine that gives no sign of life for so long is killed and replaced; '
        'above the longest prefill chunk and decode step.',
        (0.1, 3600.0),
    ),
    _Spec(
        'engine_start_timeout_s',
        120.0,
        'The same while it loads, warms up and profiles.',
        (1.0, 86400.0),
    ),
)


# The fields of planner.PlannerConfig that are parameters.
_POLICY = (
    'policy',
    'fixed_alpha',
    'fixed_tier',
    'truncation_loss',
    'pessimism',
    'miss_rate_target',
    'pessimistic_factor',
    'worst_case_times',
)


@dataclass
class ServerParameters:
    """The values in force, named as the parameters."""

    model: str
    device: str
    dtype: str
    threads: int
    max_context: int
    n_max: int
    max_batch: int
    kv_memory_bytes: int
    gpu_memory_fraction: float
    realtime_priority: int
    tiers: list[str]
    prefill_tier: str
    predictor: str
    prefill_chunk: int
    allow_download: bool
    cache_dir: str
    engine_python: str
    policy: str
    fixed_alpha: float
    fixed_tier: str
    truncation_loss: float
    pessimism: str
    miss_rate_target: float
    pessimistic_factor: float
    worst_case_times: bool
    max_queue: int
    max_queue_per_client: int
    max_prompt_bytes: int
    default_admission: str
    default_overrun: str
    max_overrun_s: float
    max_clock_skew_s: float
    alpha_max: float
    delivery_margin_s: float
    feedback_period_s: float
    stream_period_s: float
    engine_timeout_s: float
    engine_start_timeout_s: float

    def load_message(self) -> Load:
        """Return what the engine is told to load."""
        shared = {each.name for each in fields(Load)} & {each.name for each in fields(self)} - {
            'policy'
        }
        policy = {
            name: getattr(self, name)
            for name in _POLICY
        }
        return Load(policy=policy, **{name: getattr(self, name) for name in shared})

    def unkept_tier(self, kept: Sequence[str]) -> str:
        """Return what there is to say if ``fixed_tier`` is none of the engine's tiers; else ''."""
        if self.policy != 'fixed' or self.fixed_tier in ('', *kept):
            return ''
        return (f'fixed_tier = {self.fixed_tier} is not kept (the engine has {", ".join(kept)}): '
                f'queries are answered in {kept[0]}')


def declare_parameters(node: Node) -> ServerParameters:
    """
    Declare everything on the node and return the values.

    Raises rclpy's InvalidParameterTypeException or InvalidParameterValueException, which name the
    parameter.
    """
    node.add_on_set_parameters_callback(check_parameters)
    values: dict[str, Any] = {}
    for spec in _SPECS:
        values[spec.name] = node.declare_parameter(spec.name, spec.default, _descriptor(spec)).value
    return ServerParameters(**values)


def apply_parameters(current: ServerParameters, changed: list[Parameter]) -> None:
    """Take over values that were validated and set."""
    for parameter in changed:
        if hasattr(current, parameter.name):
            setattr(current, parameter.name, parameter.value)


def check_parameters(changed: list[Parameter]) -> SetParametersResult:
    """Refuse what type and range let through; the reason names parameter, value and limit."""
    specs = {spec.name: spec for spec in _SPECS}
    for parameter in changed:
        spec = specs.get(parameter.name)
        if spec is None:
            continue
        reason = _objection(spec, parameter.value)
        if reason:
            return SetParametersResult(successful=False, reason=reason)
    return SetParametersResult(successful=True)


def _objection(spec: _Spec, value: Any) -> str:
    if isinstance(spec.default, (str, list)) and spec.limits is not None:
        for each in [value] if isinstance(value, str) else value:
            if each not in spec.limits:
                return f'{spec.name} = {each!r} is not one of {", ".join(spec.limits)}'
    if isinstance(spec.default, float) and isinstance(value, float) and not isfinite(value):
        return f'{spec.name} = {value} is not a finite number'
    return ''


def _descriptor(spec: _Spec) -> ParameterDescriptor:
    descriptor = ParameterDescriptor(description=spec.description, read_only=spec.read_only)
    if spec.limits is None:
        return descriptor
    if isinstance(spec.default, (str, list)):
        descriptor.additional_constraints = 'One of: ' + ', '.join(
            each or '""' for each in spec.limits)
    elif isinstance(spec.default, float):
        low, high = spec.limits
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=low, to_value=high, step=0.0)
        ]
    else:
        low, high = spec.limits
        descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=1)]
    return descriptor
