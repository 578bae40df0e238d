# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Asks the query server to measure itself, again and again until it has."""

from collections.abc import Callable
from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node

from timebill_ros.action import Profile
from timebill_ros.msg import TimingCoefficients as TimingCoefficientsMsg
from timebill_ros.nodes import qos
from timebill_ros.nodes.conversions import duration_s
from timebill_ros.nodes.guarded import guarded

# Few samples: no query is answered while the server measures. `timebill profile` takes more.
REPEATS = 2
BUSY_RETRY_S = 5.0  # queries go first: a profile waits for a quiet moment
FIRST_RETRY_S = 10.0
LAST_RETRY_S = 300.0
RESPONSE_S = 5.0  # a server that was restarted meanwhile has never heard of the goal


class ProfileRequest:
    """One goal of ``timebill/profile`` at a time. All of it runs in the node's one thread."""

    def __init__(self, node: Node, on_profile: Callable[[TimingCoefficientsMsg], None]) -> None:
        """Connect; ``on_profile`` gets the coefficients of a profile that was made."""
        self.state = ''  # for people; '' = nothing was asked for
        self._log = node.get_logger()
        self._on_profile = on_profile
        self._client = ActionClient(node, Profile, qos.PROFILE_ACTION_NAME, **qos.service_qos())
        self._under_way = False
        self._goal = 0  # number of the newest; what older ones answer is too late
        self._accepted = False
        self._sent_s = 0.0
        self._not_before_s = 0.0
        self._retry_s = FIRST_RETRY_S
        self._now_s = 0.0
        self._tenth = -1

    def destroy(self) -> None:
        """Take the action client down."""
        self._client.destroy()

    def send_when_due(self, now_s: float) -> None:
        """Send a goal unless one is under way or it is too early; call it often (steady clock)."""
        self._now_s = now_s
        if self._under_way and not self._client.server_is_ready():
            self._again('the query server is gone')  # and with it the answer
        elif self._under_way and not self._accepted and now_s > self._sent_s + RESPONSE_S:
            self._again('the query server does not respond', BUSY_RETRY_S)
        if self._under_way or now_s < self._not_before_s or not self._client.server_is_ready():
            return
        self._under_way, self._accepted, self._sent_s, self._tenth = True, False, now_s, -1
        self._goal += 1
        goal = self._goal
        self.state = 'a profile is asked for'
        self._log.info(self.state)
        future = self._client.send_goal_async(
            Profile.Goal(repeats=REPEATS, when_busy=Profile.Goal.BUSY_REFUSE),
            feedback_callback=guarded(self._log, lambda each: self._on_feedback(each.feedback)),
        )
        future.add_done_callback(
            guarded(self._log, lambda done: self._on_response(goal, done.result()))
        )

    def _on_feedback(self, feedback: Profile.Feedback) -> None:
        left_s = duration_s(feedback.predicted_left)
        self.state = (
            f'the server measures {feedback.stage}: {feedback.done} of '
            f'{feedback.total} points, about {left_s:.0f} s left'
        )
        tenth = 10 * feedback.done // max(1, feedback.total)
        if tenth != self._tenth:
            self._tenth = tenth
            self._log.info(self.state)

    def _on_response(self, goal: int, handle: Any) -> None:
        if goal != self._goal:
            return
        if not handle.accepted:
            self._again('the server takes no goals')
            return
        self._accepted = True
        handle.get_result_async().add_done_callback(
            guarded(self._log, lambda done: self._on_result(goal, done.result().result))
        )

    def _on_result(self, goal: int, result: Profile.Result) -> None:
        if goal != self._goal:
            return
        if result.error_code == Profile.Result.NONE:
            self._under_way, self._retry_s = False, FIRST_RETRY_S
            self.state = ''
            self._on_profile(result.coefficients)
        elif result.error_code in (Profile.Result.BUSY, Profile.Result.ENGINE_NOT_READY):
            self._again(result.error_msg, BUSY_RETRY_S)
        else:
            self._again(result.error_msg)

    def _again(self, why: str, retry_s: float | None = None) -> None:
        """Wait before the next goal, longer each time unless ``retry_s`` says how long."""
        self._under_way = False
        if retry_s is None:
            retry_s, self._retry_s = self._retry_s, min(2.0 * self._retry_s, LAST_RETRY_S)
        self._not_before_s = self._now_s + retry_s
        self.state = f'no profile yet ({why}); asked for again in {retry_s:g} s'
        self._log.warning(self.state)
