# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of every room share; imports neither ROS nor torch."""

from collections.abc import Iterator
import os
import socket

import pytest

# Up to 101, the ports that DDS derives from a domain lie below those that Linux hands out itself.
DOMAIN_IDS = range(1, 102)


def pytest_configure(config: pytest.Config) -> None:
    """Draw the same examples every time: what fails was changed, not drawn."""
    if config.pluginmanager.hasplugin('hypothesispytest'):      # the launch test goes without
        from hypothesis import settings
        settings.register_profile('repeatable', derandomize=True)
        settings.load_profile('repeatable')


@pytest.fixture(scope='session', autouse=True)
def loopback_only() -> Iterator[None]:
    """Keep every node that a test starts off the network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
        yield


@pytest.fixture(scope='module')
def ros_domain() -> Iterator[int]:
    """
    Give the module a DDS domain of its own, also in $ROS_DOMAIN_ID of this process.

    No two test sessions of this machine use one domain at once: an abstract socket stands for each.
    """
    with (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim,
          pytest.MonkeyPatch.context() as patch):
        domain_id = _claim_domain(claim)
        patch.setenv('ROS_DOMAIN_ID', str(domain_id))
        yield domain_id


def _claim_domain(claim: socket.socket) -> int:
    """Bind the socket to the name of a free domain; the claim ends when the socket is closed."""
    for offset in range(len(DOMAIN_IDS)):
        domain_id = DOMAIN_IDS[(os.getpid() + offset) % len(DOMAIN_IDS)]
        try:
            claim.bind(f'\0timebill_ros_test_domain_{domain_id}')
        except OSError:
            continue
        return domain_id
    raise RuntimeError('all DDS domains are taken by other test sessions')
