# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The action ``timebill/profile``: the engine measures its model, one goal at a time."""

from collections.abc import Callable
import time
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.node import Node

from timebill_ros.action import Profile
from timebill_ros.executor.messages import (
    CancelProfile,
    ModelInfo,
    ProfileDone,
    ProfileProgress,
    RunProfile,
)
from timebill_ros.msg import TimingCoefficients as TimingCoefficientsMsg
from timebill_ros.nodes import qos
from timebill_ros.nodes.coefficients_topic import coefficients_msg
from timebill_ros.nodes.conversions import duration_msg, NS_PER_S
from timebill_ros.nodes.deadline_timer import DeadlineTimer
from timebill_ros.nodes.goal_desk import GoalDesk, query_id_of
from timebill_ros.nodes.guarded import guarded
from timebill_ros.time_estimator.coefficients import FROM_PROFILE, TimingCoefficients
from timebill_ros.time_estimator.points import LEAST_TOKENS, MOST_REPEATS

CLOSED = 'it measures its timing (action timebill/profile)'
_LOOK_NS = 50_000_000  # while queries are drained, look this often whether the last has ended
_RESULT = Profile.Result


class ProfileAction:
    """
    Serves one profile at a time; queries that arrive meanwhile fail with ENGINE_NOT_READY.

    All of it runs in the node's one thread. ``end_ns`` and the like are of the steady clock.
    """

    def __init__(
        self,
        node: Node,
        send: Callable[[int, Any], None],
        queries: GoalDesk,
        took_over: Callable[[dict[str, Any], str], None],
    ) -> None:
        """
        Open the action.

        ``send(generation, message)`` reaches the engine process; ``took_over(coefficients,
        source)`` hears what it plans with after a profile.
        """
        log = node.get_logger()
        self._log = log
        self._send = send
        self._queries = queries
        self._took_over = took_over
        self._model: ModelInfo | None = None
        self._generation = 0  # engine process that is ready; 0 = none is
        self._goal: Any = None  # the goal handle that is served
        self._began_ns = 0
        self._running = False  # the engine measures; False: queries are drained
        self._endings: dict[str, Profile.Result] = {}
        self._look = DeadlineTimer(node, guarded(log, self._begin_when_idle))
        self._server = ActionServer(
            node,
            Profile,
            qos.PROFILE_ACTION_NAME,
            execute_callback=self._hand_over,
            goal_callback=guarded(log, lambda _: GoalResponse.ACCEPT, GoalResponse.REJECT),
            handle_accepted_callback=guarded(log, self._on_accepted),
            cancel_callback=guarded(log, self._on_cancel, CancelResponse.REJECT),
            result_timeout=qos.RESULT_TIMEOUT_S,
            **qos.service_qos(),
        )

    def engine_ready(self, generation: int, model: ModelInfo) -> None:
        """Profile this engine process from now on."""
        self._generation, self._model = generation, model

    def engine_lost(self, why: str) -> None:
        """End the running profile: its engine process is gone."""
        self._generation = 0
        self._fail(_RESULT.PROFILE_FAILED if self._running else _RESULT.ENGINE_NOT_READY, why)

    def stop(self) -> None:
        """End the running profile: the node is asked to stop."""
        self._fail(_RESULT.PROFILE_FAILED, 'the node was asked to stop')

    def destroy(self) -> None:
        """Take the action server down."""
        self._server.destroy()

    def engine_said(self, message: ProfileProgress | ProfileDone) -> None:
        """Take in what the engine says about the profile that it runs."""
        if isinstance(message, ProfileDone) and message.coefficients is not None:
            self._took_over(message.coefficients, FROM_PROFILE)
        if self._goal is None or not self._running:
            return
        if isinstance(message, ProfileProgress):
            self._goal.publish_feedback(
                Profile.Feedback(
                    stage=message.stage,
                    done=message.done,
                    total=message.total,
                    predicted_left=duration_msg(round(message.predicted_left_s * NS_PER_S)),
                )
            )
        elif message.canceled:
            self._fail(_RESULT.CANCELED_BY_CLIENT, 'the client canceled the profile')
        elif message.error_msg or message.coefficients is None:
            self._fail(_RESULT.PROFILE_FAILED, message.error_msg or 'the engine sent no result')
        else:
            fitted = TimingCoefficients.from_dict(message.coefficients)
            self._end(
                Profile.Result(
                    coefficients=coefficients_msg(fitted, FROM_PROFILE), path=message.path
                )
            )

    # --- goals

    def _on_accepted(self, handle: Any) -> None:
        began_ns = time.monotonic_ns()
        refusal = self._refusal(handle.request)
        if refusal is not None:
            self._endings[query_id_of(handle)] = _timed(refusal, began_ns)
            handle.execute()
            return
        self._goal, self._began_ns, self._running = handle, began_ns, False
        self._queries.closed_because = CLOSED
        self._begin_when_idle()

    def _refusal(self, goal: Profile.Goal) -> Profile.Result | None:
        """Return how a goal ends at once; None if it is served."""
        if goal.when_busy not in (Profile.Goal.BUSY_REFUSE, Profile.Goal.BUSY_DRAIN):
            return _failure(
                _RESULT.INVALID_FIELD,
                f'when_busy = {goal.when_busy} is not one of BUSY_REFUSE = 0, BUSY_DRAIN = 1',
            )
        if goal.repeats > MOST_REPEATS:
            return _failure(
                _RESULT.INVALID_FIELD, f'repeats = {goal.repeats} exceeds {MOST_REPEATS}'
            )
        if 0 < goal.max_tokens < LEAST_TOKENS:
            return _failure(
                _RESULT.INVALID_FIELD,
                f'max_tokens = {goal.max_tokens} is below {LEAST_TOKENS} (0 = the server chooses)',
            )
        if not self._generation or self._model is None:
            return _failure(_RESULT.ENGINE_NOT_READY, 'the engine is not ready: it starts')
        if goal.max_tokens > self._model.max_context:
            return _failure(
                _RESULT.INVALID_FIELD,
                f'max_tokens = {goal.max_tokens} exceeds the '
                f'context of {self._model.max_context} tokens',
            )
        if self._goal is not None:
            return _failure(_RESULT.BUSY, 'a profile is being made already')
        n_open = len(self._queries.book.all())
        if n_open and goal.when_busy == Profile.Goal.BUSY_REFUSE:
            return _failure(
                _RESULT.BUSY,
                f'{n_open} queries wait or run; when_busy = BUSY_DRAIN would let them end first',
            )
        return None

    def _begin_when_idle(self) -> None:
        if self._goal is None or self._running:
            return
        if self._queries.book.all():
            self._look.arm(time.monotonic_ns() + _LOOK_NS)
            return
        self._running = True
        goal = self._goal.request
        self._send(self._generation, RunProfile(int(goal.max_tokens), int(goal.repeats)))

    def _on_cancel(self, handle: Any) -> CancelResponse:
        if self._goal is not None and query_id_of(handle) == query_id_of(self._goal):
            if self._running:
                self._send(self._generation, CancelProfile())
            else:
                self._fail(_RESULT.CANCELED_BY_CLIENT, 'the client canceled the profile')
        return CancelResponse.ACCEPT

    def _fail(self, error_code: int, error_msg: str) -> None:
        if self._goal is not None:
            self._end(_failure(error_code, error_msg))

    def _end(self, result: Profile.Result) -> None:
        handle, self._goal, self._running = self._goal, None, False
        self._queries.closed_because = ''
        self._endings[query_id_of(handle)] = _timed(result, self._began_ns)
        if result.error_code != _RESULT.NONE:
            self._log.warning(f'profile: {result.error_msg}')
        handle.execute()

    def _hand_over(self, handle: Any) -> Profile.Result:
        """Set the goal's final state and return its result (execute callback of rclpy)."""
        result = self._endings.pop(query_id_of(handle))
        if result.error_code == _RESULT.NONE:
            handle.succeed()
        elif result.error_code == _RESULT.CANCELED_BY_CLIENT:
            handle.canceled()
        else:
            handle.abort()
        return result


def _failure(error_code: int, error_msg: str) -> Profile.Result:
    return Profile.Result(
        coefficients=TimingCoefficientsMsg(), error_code=error_code, error_msg=error_msg
    )


def _timed(result: Profile.Result, began_ns: int) -> Profile.Result:
    result.total_elapsed_time = duration_msg(time.monotonic_ns() - began_ns)
    return result
