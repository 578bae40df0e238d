# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
The node owns the deadline, whatever the engine does.

Its profile is made far too hopeful, so that nothing is refused: every query is begun, and most run
into their deadline, some of them deep in a long prefill.
"""

from collections.abc import Iterator
import random

import pytest
from ros_serving import ensure_profile, hopeful_cache, running_server, Server, STORY, WAIT_S

from timebill_ros.client import Answer
from timebill_ros.query import Outcome

ROUNDS = 50
# Ample, because other work on the machine of the tests is none of the node's faults.
DELIVERY_MARGIN_S = 0.1
IN_TIME_SHARE = 0.97
LONG = 'The robot saw a red chair in the room. ' * 400


@pytest.fixture(scope='module')
def hopeful_server(ros_domain: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Give the module a server that believes this machine to be ten thousand times faster."""
    ensure_profile()
    cache = hopeful_cache(tmp_path_factory.mktemp('hopeful') / 'cache')
    with running_server(
        'hopeful', cache_dir=str(cache), delivery_margin_s=DELIVERY_MARGIN_S, max_batch=1,
        policy='paper'
    ) as running:
        yield running


@pytest.fixture(scope='module')
def answers(hopeful_server: Server) -> list[Answer]:
    """Ask many tight queries, two at a time, so that the second waits for the one slot."""
    seeded = random.Random(7)
    found: list[Answer] = []
    for number in range(ROUNDS):
        prompts = [LONG if number % 3 == 0 else STORY, STORY]
        pending = [
            hopeful_server.client.ask_async(
                prompt, within=seeded.uniform(0.15, 0.4), max_new_tokens=seeded.choice((1, 3, 0))
            )
            for prompt in prompts
        ]
        found += [each.result(WAIT_S) for each in pending]
    # Long enough to get to the decoding, and too short for all of it.
    too_short_s = hopeful_server.time_for_tokens(200)
    found += [hopeful_server.client.ask(STORY, within=too_short_s) for _ in range(6)]
    return found


def test_after_the_plan_deadline_nothing_but_a_miss_is_handed_over(
    hopeful_server: Server, answers: list[Answer]
) -> None:
    assert len(answers) >= 100
    for answer in answers:
        assert answer.message is not None, answer.error_msg
        record = hopeful_server.watcher.timing_of(bytes(answer.message.goal_id.uuid.tolist()))
        assert record.outcome == Outcome.DEADLINE_MISSED or record.slack > record.delivery_margin
        assert record.delivery_margin == pytest.approx(DELIVERY_MARGIN_S)


def test_results_are_at_the_client_by_the_deadline(answers: list[Answer]) -> None:
    in_time = [answer.elapsed_s <= answer.within_s for answer in answers]
    lateness_ms = sorted(1e3 * (answer.elapsed_s - answer.within_s) for answer in answers)
    assert sum(in_time) >= IN_TIME_SHARE * len(answers), f'the latest: {lateness_ms[-5:]} ms'


def test_misses_happened_everywhere(answers: list[Answer]) -> None:
    misses = [answer for answer in answers if answer.outcome == Outcome.DEADLINE_MISSED]
    for where in ('waiting for the engine', 'reading the prompt', 'tokens into the response'):
        assert sum(where in answer.error_msg for answer in misses) >= 3, where
    # a turn that comes a millisecond before the deadline is no turn any more
    others = {Outcome.COMPLETED, Outcome.INFEASIBLE}
    assert {answer.outcome for answer in answers} <= {Outcome.DEADLINE_MISSED, *others}
    assert sum(answer.outcome == Outcome.INFEASIBLE for answer in answers) <= 3
