# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The query: one object that every stage extends and hands on, and the record of its timing.

The enumerations carry the numbers of ``action/Query.action``; a test holds the two together.
Nothing here knows of ROS or of torch: the node and the engine process both import it.
"""

from dataclasses import dataclass, field
from enum import IntEnum
from math import nan
from typing import Optional

NS_PER_S = 1_000_000_000
ALPHA_MAX = 0.95        # largest eviction ratio that can be asked for (the paper's)

# A logit divided by less can leave float32, and nothing but the likeliest token would be drawn.
_LEAST_TEMPERATURE = 1e-5


class Outcome(IntEnum):
    """How a query ended (``Query.Result.OUTCOME_*``)."""

    COMPLETED = 1
    TRUNCATED = 2
    DEADLINE_MISSED = 3
    INFEASIBLE = 4
    SKIPPED = 5
    INVALID = 6
    CANCELED = 7
    FAILED = 8


class FinishReason(IntEnum):
    """What ended the response (``Query.Result.FINISH_*``)."""

    NONE = 0
    END_TOKEN = 1
    CLIENT_CAP = 2
    SERVER_CAP = 3
    STOP_STRING = 4
    LANDED = 5
    PLANNED_CAP = 6


class ErrorCode(IntEnum):
    """Why a query has no complete answer (``Query.Result`` error codes)."""

    NONE = 0
    INVALID_PROMPT = 10000
    INVALID_TIME_ALLOWANCE = 10001
    INVALID_SENT_AT = 10002
    INVALID_MAX_NEW_TOKENS = 10003
    INVALID_ADMISSION = 10004
    INVALID_OVERRUN = 10005
    INVALID_ALPHA_MAX = 10006
    INVALID_MIN_TIER = 10007
    INVALID_STOP = 10008
    INVALID_SAMPLING = 10009
    PROMPT_TOO_LONG = 10010
    INVALID_CLIENT_ID = 10011
    BUDGET_TOO_SMALL = 10020
    QUEUE_FULL = 10030
    LATE_JOB_RUNNING = 10031
    DEADLINE_MISSED = 10040
    DELIVERED_LATE = 10041
    ENGINE_NOT_READY = 10050
    ENGINE_DIED = 10051
    ENGINE_HUNG = 10052
    ENGINE_ERROR = 10053
    OUT_OF_MEMORY = 10054
    CANCELED_BY_CLIENT = 10060
    SERVER_SHUTDOWN = 10061


class Admission(IntEnum):
    """Whether a query that might not fit is run at all (``Query.Goal.ADMISSION_*``)."""

    SERVER_DEFAULT = 0
    BEST_EFFORT = 1
    GUARANTEED = 2


class Overrun(IntEnum):
    """What happens at the deadline (``Query.Goal.OVERRUN_*``)."""

    SERVER_DEFAULT = 0
    KILL = 1
    SKIP_NEXT = 2
    SOFT_LANDING = 3


class Stage(IntEnum):
    """Where a query stands (``Query.Feedback.STAGE_*``)."""

    QUEUED = 0
    PREFILL = 1
    DECODE = 2
    LATE = 3


@dataclass
class Turn:
    """One turn of a conversation, as a chat template takes it."""

    role: str
    content: str


@dataclass
class Sampling:
    """
    How the next token is chosen; every field is resolved (no "server's default" left).

    ``temperature`` 0 is greedy, and so is what cannot be told from it. ``top_k`` 0 and ``top_p`` 1
    are off. ``repetition_penalty`` is that of transformers (CTRL, arXiv 1909.05858, section 4.1):
    1 is off; it counts prompt and response.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: Optional[int] = None

    @property
    def greedy(self) -> bool:
        """Tell whether the likeliest token is always chosen."""
        return self.temperature < _LEAST_TEMPERATURE


@dataclass
class Query:
    """
    What a client asked, with every default resolved by the node.

    Times are nanoseconds of the steady clock (``time.monotonic_ns``; on Linux one clock for all
    processes).
    """

    query_id: str                      # hexadecimal goal id
    messages: list[Turn]               # the whole conversation, system turn included
    arrival_ns: int                    # when the goal arrived
    deadline_ns: int                   # hard deadline: the result is at the client by then
    plan_deadline_ns: int              # deadline - delivery margin: later only a miss goes out
    max_new_tokens: int                # cap on the response: min(client's cap, server's N_max)
    cap_is_clients: bool               # that cap is the client's own (finish reason CLIENT_CAP)
    admission: Admission = Admission.BEST_EFFORT
    overrun: Overrun = Overrun.KILL
    alpha_max: float = ALPHA_MAX
    min_tier: str = ''
    stop: list[str] = field(default_factory=list)
    sampling: Sampling = field(default_factory=Sampling)
    overrun_ns: int = 0                # how long beyond plan_deadline_ns it may run (SKIP_NEXT)
    waited_ns: int = 0                 # of the budget gone before arrival_ns (sent_at)
    handover_ns: int = 0               # what the way from the engine to a result takes
    client_id: str = ''                # whose it is; '' = the pool of those who do not say

    @property
    def due_ns(self) -> int:
        """When the engine has to have its answer, for a result at plan_deadline_ns."""
        return self.plan_deadline_ns - self.handover_ns

    @property
    def stop_ns(self) -> int:
        """The moment at which its work ends, whatever came of it."""
        return self.plan_deadline_ns + self.overrun_ns

    @property
    def time_allowance_ns(self) -> int:
        """The budget as the client gave it."""
        return self.deadline_ns - self.arrival_ns + self.waited_ns

    @property
    def delivery_margin_ns(self) -> int:
        """What of the budget is kept back for the way to the client."""
        return self.deadline_ns - self.plan_deadline_ns


@dataclass
class DecodeStretch:
    """Decode steps in a row in one tier and one batch (``msg/DecodeStretch``)."""

    tier: str
    width: int                         # sequences in each step
    n_cached: float                    # mean tokens cached per sequence before the first step
    steps: int
    seconds: float


@dataclass
class QueryTiming:
    """
    Everything predicted about a query beside everything measured (``msg/QueryTiming``).

    Durations in seconds, lengths in tokens; NaN is "not known". Fields have the message's names,
    so that one conversion serves all; the message's comments say what each one means.
    """

    n_prompt: int = 0
    n_predicted: int = 0
    n_worst: int = 0
    n_cap: int = 0
    n_generated: int = 0
    n_kept: int = 0
    n_cached: int = 0

    tier: str = ''
    alpha: float = 0.0
    alpha_raw: float = nan
    feasible: bool = False
    deadline_at_risk: bool = False
    pessimistic_factor: float = nan
    time_factor: float = nan
    quality_source: str = ''
    predictor: str = ''
    policy: str = ''
    coefficients_source: str = ''
    coefficients_stamp_ns: int = 0     # system time, nanoseconds
    plan_elapsed: float = nan
    law_prefill: list[float] = field(default_factory=list)
    law_decode_step: list[float] = field(default_factory=list)
    replans: list[str] = field(default_factory=list)

    time_allowance: float = nan
    delivery_margin: float = nan
    slack: float = nan

    predicted_predict: float = nan
    predicted_prefill: float = nan
    predicted_evict: float = nan
    predicted_decode: float = nan
    predicted_decode_worst: float = nan
    predicted_overhead: float = nan
    predicted_total: float = nan
    predicted_total_worst: float = nan
    predicted_decode_realised: float = nan

    queued: float = nan
    tokenize: float = nan
    predict: float = nan
    prefill: float = nan
    evict: float = nan
    decode: float = nan
    decode_step_max: float = nan
    stretches: list[DecodeStretch] = field(default_factory=list)
    overhead: float = nan
    first_token: float = nan
    total: float = nan
    last_token_to_result: float = nan


@dataclass
class Ending:
    """How a query ended, as the engine (or the node in its place) says it."""

    outcome: Outcome
    finish_reason: FinishReason = FinishReason.NONE
    error_code: ErrorCode = ErrorCode.NONE
    error_msg: str = ''
