# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Python's garbage collector, kept out of the queries.

With the objects of a loaded model a full collection takes 20 to 400 ms, at any moment. So what
the start leaves behind is set aside for good, and the rest is collected between queries.
"""

import gc


def settle() -> None:
    """Set aside everything alive now, and collect only when told; to be called once warmed up."""
    gc.collect()
    gc.freeze()
    gc.disable()


def collect() -> None:
    """Collect what the last query left; milliseconds, since what was set aside is not looked at."""
    gc.collect()


def collect_young() -> None:
    """Collect what was made lately; a fraction of a millisecond."""
    gc.collect(0)
