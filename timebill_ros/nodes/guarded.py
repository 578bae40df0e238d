# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Callbacks that cannot end ``spin()``, and a ``spin()`` that nothing else can end either."""

from collections.abc import Callable
import functools
import traceback
from typing import Any

from rclpy.executors import Executor
from rclpy.impl.rcutils_logger import RcutilsLogger


def guarded(
    logger: RcutilsLogger, callback: Callable[..., Any], fallback: Any = None
) -> Callable[..., Any]:
    """Return the callback with its exceptions logged and answered by ``fallback``."""

    @functools.wraps(callback)
    def call(*args: Any) -> Any:
        try:
            return callback(*args)
        except Exception:  # a query may fail, the node may not
            logger.error(f'{callback.__name__} failed:\n{traceback.format_exc()}')
            return fallback

    return call


def spin_while(
    executor: Executor,
    logger: RcutilsLogger,
    wanted: Callable[[], bool],
    longest_wait_s: float | None = None,
) -> None:
    """
    Spin until ``wanted()`` is false; survive exceptions.

    ``wanted`` is asked after every callback, and every ``longest_wait_s`` if given. An exception
    from within rclpy, such as one for a message that it cannot convert, is logged.
    """
    while wanted() and executor.context.ok():
        try:
            executor.spin_once(timeout_sec=longest_wait_s)
        except Exception:
            if executor.context.ok():
                logger.error(f'survived an exception while spinning:\n{traceback.format_exc()}')
