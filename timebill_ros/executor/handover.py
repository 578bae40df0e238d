# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
How long before the deadline the engine has to be done, so that the result is handed over in time.

Pure. Whoever asks the engine measures how long the engine's last word took to become a result (one
steady clock for both processes), and tells it with the next query (``Query.handover_ns``).
"""

from collections import deque
from math import ceil

# Until enough was measured, and never more: a slower hand-over is a fault, no habit.
MOST_NS = 5_000_000
LEAST_NS = 200_000
# Of a hundred hand-overs two may take longer. Fewer would need more measurements to know.
_COVERED = 0.98
_NEWEST = 200


class Handover:
    """
    The hand-overs of late, and the margin that follows from them.

    With n measured the ceil(0.98 * (n + 1))-th smallest is not exceeded by the next one in 98 of
    100 cases, whatever their distribution (split conformal; as with ``pessimism``'s start value).
    """

    def __init__(self) -> None:
        """Start with nothing measured."""
        self._newest: deque[int] = deque(maxlen=_NEWEST)

    def measured(self, took_ns: int) -> None:
        """Take in how long a hand-over took: from the engine's ending to the result."""
        self._newest.append(took_ns)

    @property
    def margin_ns(self) -> int:
        """What to keep back for the next one."""
        rank = ceil(_COVERED * (len(self._newest) + 1))
        if rank > len(self._newest):
            return MOST_NS
        return min(MOST_NS, max(LEAST_NS, sorted(self._newest)[rank - 1]))
