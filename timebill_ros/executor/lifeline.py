# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""A child process that does not outlive its parent, not even while it is stopped."""

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """
    Have the kernel kill this process when the thread that started it ends.

    The end of its pipe tells it as well, but a process that is stopped or stuck does not look.
    Does nothing where the kernel is not Linux.
    """
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
