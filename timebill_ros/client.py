# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
For planner nodes: a typed answer to a question, or the reason why there is none, in time.

::

    client = TimeBillClient()                      # or TimeBillClient(node), in a node of yours
    answer = client.ask('Left or right at the lamp?', within=2.0)
    if answer.ok:
        act_on(answer.response)
    elif answer.outcome == Outcome.INFEASIBLE:     # answer.error_msg says what budget would do
        ...

``ask_async`` returns a ``concurrent.futures.Future`` of the same answer. Both may be called
anywhere, also in a callback of a node that is being spun: the client talks to the server through a
small node of its own, spun by a thread of its own.
"""

import atexit
from collections.abc import Callable, Mapping
import concurrent.futures
from dataclasses import dataclass
import threading
import time
from typing import Any
import uuid

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from unique_identifier_msgs.msg import UUID

from timebill_ros.action import Query as QueryAction
from timebill_ros.nodes import qos
from timebill_ros.nodes.answer import Answer, answer_of, goal_of, no_answer, within_objection
from timebill_ros.nodes.conversions import duration_msg, NS_PER_S, system_ns, time_msg
from timebill_ros.nodes.deadline_timer import DeadlineTimer
from timebill_ros.nodes.event_inbox import EventInbox
from timebill_ros.nodes.guarded import guarded, spin_while
from timebill_ros.nodes.quiet_client import QuietActionClient
from timebill_ros.query import ErrorCode, Outcome, Overrun

__all__ = ['Answer', 'PendingAnswer', 'TimeBillClient']

FeedbackCallback = Callable[[QueryAction.Feedback], None]

_LOOK_NS = 20_000_000  # while the server is not there or does not hear us, look this often
_THREAD_GRACE_S = 1.0  # for the client's own thread, beyond the moment when it gives up


class PendingAnswer(concurrent.futures.Future):
    """An answer to come: ``result()`` gives it, after ``cancel()`` too."""

    def __init__(self, ask_to_cancel: Callable[['PendingAnswer'], None]) -> None:
        """Be created by TimeBillClient.ask_async."""
        super().__init__()
        self._ask_to_cancel = ask_to_cancel
        self.set_running_or_notify_cancel()

    def cancel(self) -> bool:
        """Ask the server to stop: the answer is CANCELED, or was under way. False: it is here."""
        if self.done():
            return False
        self._ask_to_cancel(self)
        return True


@dataclass(eq=False)
class _Ask:
    """One query of this client. Times are nanoseconds of the steady clock."""

    goal: QueryAction.Goal
    pending: PendingAnswer
    started_ns: int
    within_ns: int
    server_by_ns: int
    give_up_ns: int
    on_feedback: FeedbackCallback | None
    sent: bool = False
    cancel_asked: bool = False
    handle: Any = None


class _Look:
    """Event: somebody wants to know whether the server hears us."""


class TimeBillClient:
    """Asks one server; every query has an Answer soon after its deadline at the latest."""

    def __init__(
        self,
        node: Node | None = None,
        *,
        namespace: str = '',
        server_wait_s: float = 5.0,
        late_wait_s: float = 0.1,
        overrun_wait_s: float = 10.0,
        stamp: bool = False,
    ) -> None:
        """
        Connect to ``timebill/query`` in the node's namespace, or in ``namespace``.

        ``server_wait_s``: how long a query waits for a server that is not there (within its
        budget).
        ``late_wait_s``: how long after its deadline the server's account of a missed query is
        waited for; ``overrun_wait_s``: the same for a query with ``overrun=Overrun.SKIP_NEXT``,
        whose whole text comes late.
        ``stamp``: send the moment of asking (``sent_at``), so that the way to the server counts
        by the two system clocks; without it what passed before sending is taken off the budget.
        """
        self.server_wait_s = server_wait_s
        self.late_wait_s = late_wait_s
        self.overrun_wait_s = overrun_wait_s
        self.stamp = stamp
        self._own_context = node is None
        if node is None:
            self._context = rclpy.Context()
            rclpy.init(
                args=[], context=self._context, signal_handler_options=SignalHandlerOptions.NO
            )
        else:
            self._context = node.context
        # A node of its own, so that no executor of the caller's has to spin for an answer to
        # arrive.
        self._node = Node(
            f'timebill_client_{uuid.uuid4().hex[:8]}',
            context=self._context,
            namespace=namespace,
            use_global_arguments=False,
            enable_rosout=False,
            start_parameter_services=False,
        )
        named_by = self._node if node is None or namespace else node
        self.action_name = named_by.resolve_topic_name(qos.ACTION_NAME)
        self.client_id = (node or self._node).get_fully_qualified_name()
        log = self._node.get_logger()
        self._client = QuietActionClient(
            self._node, QueryAction, self.action_name, guarded(log, self._on_heard)
        )
        self._inbox = EventInbox(self._node, guarded(log, self._on_event))
        self._timer = DeadlineTimer(self._node, guarded(log, self._on_timer))
        self._asks: list[_Ask] = []  # open ones; only the client's thread touches them
        self._heard = False  # as far as the client's thread knew when it last looked
        self._closing = False
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name='timebill client', daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def wait_for_server(self, timeout_s: float) -> bool:
        """
        Wait until the server answers this client, as it does once its engine is ready.

        False: it does not. A query waits for that as well, so that its answer cannot be lost.
        """
        end_s = time.monotonic() + timeout_s
        self._heard = False
        while not self._heard:
            self._inbox.post(_Look())
            if time.monotonic() >= end_s or self._closing:
                return False
            time.sleep(_LOOK_NS / NS_PER_S)
        return True

    def ask(
        self,
        prompt: str = '',
        *,
        within: float,
        on_feedback: FeedbackCallback | None = None,
        **fields: Any,
    ) -> Answer:
        """
        Ask, and return the answer ``within`` seconds, or ``late_wait_s`` later; blocks.

        ``fields`` are those of ``Query.Goal`` (messages, max_new_tokens, admission, stop, ...);
        ``client_id`` is this client's unless given.
        Raises TypeError for an unknown field and ValueError for a value that its type cannot hold;
        everything else is in the answer.
        """
        pending = self.ask_async(prompt, within=within, on_feedback=on_feedback, **fields)
        timeout_s = max(0.0, within) + self._late_wait_s(fields) + _THREAD_GRACE_S
        try:
            return pending.result(timeout_s)
        except concurrent.futures.TimeoutError:
            return no_answer(
                Outcome.DEADLINE_MISSED,
                ErrorCode.DELIVERED_LATE,
                "the client's thread does not run",
                round(timeout_s * NS_PER_S),
                round(within * NS_PER_S),
            )

    def ask_async(
        self,
        prompt: str = '',
        *,
        within: float,
        on_feedback: FeedbackCallback | None = None,
        **fields: Any,
    ) -> PendingAnswer:
        """Ask as ``ask`` does and return at once; ``on_feedback`` runs in the client's thread."""
        started_ns = time.monotonic_ns()
        pending = PendingAnswer(self._inbox.post)
        objection = within_objection(within)
        if objection:
            pending.set_result(
                no_answer(Outcome.INVALID, ErrorCode.INVALID_TIME_ALLOWANCE, objection, 0, 0)
            )
            return pending
        within_ns = round(within * NS_PER_S)
        self._inbox.post(
            _Ask(
                goal=goal_of(prompt, {'client_id': self.client_id, **fields}),
                pending=pending,
                started_ns=started_ns,
                within_ns=within_ns,
                server_by_ns=started_ns + min(within_ns, round(self.server_wait_s * NS_PER_S)),
                give_up_ns=started_ns + within_ns + round(self._late_wait_s(fields) * NS_PER_S),
                on_feedback=on_feedback,
            )
        )
        return pending

    def close(self) -> None:
        """End the client; open queries are canceled and answered FAILED."""
        if self._closing:
            return
        self._closing = True
        atexit.unregister(self.close)
        if self._context.ok():
            self._inbox.post(None)  # an event of no meaning, so that the thread looks up
        if threading.current_thread() is not self._thread:
            self._thread.join()
        if self._own_context:
            rclpy.try_shutdown(context=self._context)

    def __enter__(self) -> 'TimeBillClient':
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    # --- in the client's thread

    def _spin(self) -> None:
        spin_while(self._executor, self._node.get_logger(), lambda: not self._closing)
        for ask in list(self._asks):
            if ask.handle is not None and self._context.ok():
                ask.handle.cancel_goal_async()
            self._finish(
                ask,
                self._none(ask, Outcome.FAILED, ErrorCode.SERVER_SHUTDOWN, 'the client was closed'),
            )
        self._executor.shutdown()
        # Before the node: an action client that is left keeps the DDS participant alive, and what
        # looks like a dead one slows the discovery of the next by seconds.
        self._client.destroy()
        self._node.destroy_node()

    def _on_event(self, event: Any) -> None:
        if isinstance(event, _Ask):
            self._asks.append(event)
            self._on_timer()
        elif isinstance(event, _Look):
            self._heard = self._client.is_heard()
        else:
            for ask in [each for each in self._asks if each.pending is event]:
                self._cancel(ask)

    def _on_heard(self) -> None:
        self._heard = True
        self._on_timer()

    def _on_timer(self) -> None:
        """Send what waits for the server, give up what is over, arm the timer for what is next."""
        now_ns = time.monotonic_ns()
        unsent = [ask for ask in self._asks if not ask.sent]
        if unsent and self._client.is_heard():
            for ask in unsent:
                self._send(ask)
        for ask in list(self._asks):
            if now_ns >= ask.give_up_ns or (not ask.sent and now_ns >= ask.server_by_ns):
                self._give_up(ask)
        moments = [ask.give_up_ns for ask in self._asks]
        if any(not ask.sent for ask in self._asks):
            moments.append(now_ns + _LOOK_NS)
        self._timer.arm(min(moments, default=None))

    def _send(self, ask: _Ask) -> None:
        ask.sent = True
        if self.stamp:
            ask.goal.time_allowance = duration_msg(ask.within_ns)
            ask.goal.sent_at = time_msg(system_ns(ask.started_ns))
        else:
            left_ns = ask.started_ns + ask.within_ns - time.monotonic_ns()
            ask.goal.time_allowance = duration_msg(max(1, left_ns))
        log = self._node.get_logger()
        on_feedback = ask.on_feedback
        future = self._client.send_goal_async(
            ask.goal,
            goal_uuid=UUID(uuid=list(uuid.uuid4().bytes)),
            feedback_callback=None
            if on_feedback is None
            else guarded(log, lambda each: on_feedback(each.feedback)),
        )
        future.add_done_callback(guarded(log, lambda done: self._on_response(ask, done.result())))

    def _on_response(self, ask: _Ask, handle: Any) -> None:
        if not handle.accepted:
            self._finish(
                ask,
                self._none(
                    ask,
                    Outcome.FAILED,
                    ErrorCode.SERVER_SHUTDOWN,
                    f'{self.action_name} takes no more queries',
                ),
            )
            return
        ask.handle = handle
        self._client.forget(handle)
        handle.get_result_async().add_done_callback(
            guarded(self._node.get_logger(), lambda done: self._on_result(ask, done.result()))
        )
        if ask.cancel_asked or ask.pending.done():
            handle.cancel_goal_async()

    def _on_result(self, ask: _Ask, response: Any) -> None:
        elapsed_ns = time.monotonic_ns() - ask.started_ns
        if response.result.outcome == 0:
            self._finish(
                ask,
                self._none(
                    ask,
                    Outcome.FAILED,
                    ErrorCode.ENGINE_ERROR,
                    f'{self.action_name} sent an empty result',
                ),
            )
        else:
            self._finish(ask, answer_of(response.result, elapsed_ns, ask.within_ns))

    def _cancel(self, ask: _Ask) -> None:
        ask.cancel_asked = True
        if ask.handle is not None:
            ask.handle.cancel_goal_async()
        elif not ask.sent:
            self._finish(
                ask,
                self._none(
                    ask,
                    Outcome.CANCELED,
                    ErrorCode.CANCELED_BY_CLIENT,
                    'canceled before it was sent',
                ),
            )

    def _give_up(self, ask: _Ask) -> None:
        if ask.sent:
            self._cancel(ask)
            self._finish(
                ask,
                self._none(
                    ask,
                    Outcome.DEADLINE_MISSED,
                    ErrorCode.DELIVERED_LATE,
                    f'no result of {self.action_name} came within = {ask.within_ns / NS_PER_S:g} s',
                ),
            )
        else:
            self._finish(
                ask,
                self._none(
                    ask,
                    Outcome.FAILED,
                    ErrorCode.ENGINE_NOT_READY,
                    f'no server {self.action_name} answers: it is not running, hangs, is in '
                    'another namespace or domain, or its engine still starts',
                ),
            )

    def _late_wait_s(self, fields: Mapping[str, Any]) -> float:
        runs_late = fields.get('overrun') == Overrun.SKIP_NEXT
        return self.overrun_wait_s if runs_late else self.late_wait_s

    @staticmethod
    def _none(ask: _Ask, outcome: Outcome, code: ErrorCode, message: str) -> Answer:
        return no_answer(
            outcome, code, message, time.monotonic_ns() - ask.started_ns, ask.within_ns
        )

    def _finish(self, ask: _Ask, answer: Answer) -> None:
        if ask in self._asks:
            self._asks.remove(ask)
            ask.pending.set_result(answer)
