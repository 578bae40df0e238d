# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""One server for all tests of this room, because an engine takes seconds to load."""

from collections.abc import Iterator

import pytest
from ros_serving import running_server, Server

# Above the slowest prefill chunk of a busy machine, and short enough to wait for.
ENGINE_TIMEOUT_S = 5.0


@pytest.fixture(scope='module')
def server(ros_domain: int) -> Iterator[Server]:
    """
    Give the module a server of the embedded model.

    With the paper's policy: "joint" would cap answers that are to run into their deadline.
    """
    # One at a time, so that what waits is known; test_overrun has queries that share the engine.
    with running_server(
        'robot', engine_timeout_s=ENGINE_TIMEOUT_S, policy='paper', max_batch=1
    ) as running:
        yield running
