# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Real-time scheduling of the thread that drives the model, where it may be had; never required.

Beside two busy processes on a two-core machine, 3.5 ms waits ended up to 5.4 ms late (p99) under
SCHED_OTHER and 0.15 ms late under SCHED_FIFO. That holds for a thread that sleeps while a GPU
works: one that computes is held by the kernel for 50 ms of each second (sched_rt_runtime_us), so
a CPU engine does not take part.
"""

import os


def claim(priority: int, device: str) -> str:
    """
    Put the calling thread under SCHED_FIFO with ``priority`` (1..99; 0 = leave it).

    ``device`` is the engine's ("cpu", "cuda"). Returns what the operator should know, '' = nothing.
    """
    if priority <= 0:
        return ''
    if device == 'cpu':
        return ('realtime_priority is left out: the engine computes on the CPU, where the kernel '
                'would hold a real-time thread for 50 ms of each second')
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except (OSError, ValueError) as error:
        return (f'realtime_priority {priority} cannot be had ({error}); it takes the limit '
                '"rtprio" (/etc/security/limits.d) or the capability CAP_SYS_NICE')
    return ''
