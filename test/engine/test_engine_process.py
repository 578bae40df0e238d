# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The real engine process over its pipes, with the embedded model."""

from collections.abc import Callable, Iterator
import os
from pathlib import Path
import subprocess
import sys
import time
from typing import Any
import uuid

from linked_cache import linked_cache
import pytest

from timebill_ros.executor.engine_command import engine_argv
from timebill_ros.executor.messages import (
    Adopt, Alive, CancelProfile, ChannelClosed, Drop, Finished, Load, LoadFailed, Loading, Planned,
    ProfileDone, ProfileProgress, Progress, read_message, Ready, RunProfile, Shutdown, Submit,
    write_message)
from timebill_ros.query import (
    Admission, ErrorCode, FinishReason, Outcome, Query, Sampling, Stage, Turn)
from timebill_ros.time_estimator.coefficients import TimingCoefficients

S = 1_000_000_000
STORY = 'Tell me a long story about a robot and a king.'


class Engine:
    """An engine process as the node sees it."""

    def __init__(self, load: Load) -> None:
        engine_reads, we_write = os.pipe()
        we_read, engine_writes = os.pipe()
        self.process = subprocess.Popen(
            engine_argv(sys.executable, engine_reads, engine_writes),
            pass_fds=(engine_reads, engine_writes))
        os.close(engine_reads)
        os.close(engine_writes)
        self._out, self._in = os.fdopen(we_write, 'wb'), os.fdopen(we_read, 'rb')
        self.send(load)

    def send(self, message: Any) -> None:
        write_message(self._out, message)

    def read(self, until: Callable[[Any], bool]) -> list[Any]:
        """Return the messages up to the first for which ``until`` holds."""
        messages = [read_message(self._in)]
        while not until(messages[-1]):
            messages.append(read_message(self._in))
        return messages

    def submit(self, text: str, within_s: float = 600.0, cap: int = 8, **fields: Any) -> str:
        now_ns = time.monotonic_ns()
        deadline_ns = now_ns + round(within_s * S)
        query = Query(
            uuid.uuid4().hex, [Turn('user', text)], now_ns, deadline_ns, deadline_ns - S // 50,
            cap, False, sampling=Sampling(repetition_penalty=1.2), **fields)
        self.send(Submit(query))
        return query.query_id

    def finished(self, query_id: str) -> tuple[Finished, list[Any]]:
        """Return how a query ended, and all messages until then."""
        messages = self.read(lambda each: isinstance(each, Finished) and each.query_id == query_id)
        return messages[-1], messages[:-1]

    def ask(self, text: str, **fields: Any) -> tuple[Finished, list[Any]]:
        return self.finished(self.submit(text, **fields))

    def time_for_tokens(self, count: int) -> float:
        """Return the seconds that so many tokens of the story take on this machine."""
        began_s = time.monotonic()
        last, _ = self.ask(STORY, cap=count)
        assert last.timing.n_generated == count
        return time.monotonic() - began_s

    def hang_up(self) -> None:
        self._out.close()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._in.close()


@pytest.fixture(scope='module')
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """Load the embedded model from where it is converted already, with profiles of our own."""
    own = linked_cache(tmp_path_factory.mktemp('cache'))
    return Load('embedded', max_context=1024, cache_dir=str(own), max_batch=1,
                policy={'policy': 'paper'})


@pytest.fixture(scope='module')
def started(load: Load) -> Iterator[tuple[Engine, list[Any]]]:
    engine = Engine(load)
    yield engine, engine.read(lambda each: isinstance(each, (Ready, LoadFailed)))
    engine.end()


@pytest.fixture
def engine(started: tuple[Engine, list[Any]]) -> Engine:
    return started[0]


def test_the_start_shows_signs_of_life_and_ends_ready(
        started: tuple[Engine, list[Any]], load: Load) -> None:
    *before, ready = started[1]
    assert isinstance(ready, Ready) and ready.coefficients_source == 'profile'
    assert before and all(isinstance(each, Loading) for each in before)
    assert ready.info.max_context == 1024 and ready.info.tiers == ['fp32', 'int4']
    coefficients = TimingCoefficients.from_dict(ready.coefficients)
    assert ready.info.device in coefficients.key and ready.info.key in coefficients.key
    assert ready.profile_s < 60.0       # aimed at 30, on a machine that others use too
    profile, = (Path(load.cache_dir) / 'profiles').glob('*.json')
    assert '"samples"' in profile.read_text()


def test_an_answer(engine: Engine) -> None:
    last, messages = engine.ask('What is the capital of France?', cap=20)
    assert last.ending.outcome == Outcome.COMPLETED
    assert last.ending.finish_reason == FinishReason.END_TOKEN
    assert last.text == 'The capital of France is Paris.'
    assert sum(isinstance(each, Planned) for each in messages) == 1
    assert ''.join(each.text for each in messages if isinstance(each, Progress)) == last.text
    assert last.timing.coefficients_source == 'profile' and last.timing.tokenize > 0.0


def test_queries_wait_for_their_turn_by_deadline(engine: Engine) -> None:
    first = engine.submit(STORY, cap=500)
    engine.read(lambda each: isinstance(each, Progress) and each.query_id == first)
    later, sooner = engine.submit(STORY, within_s=500.0), engine.submit(STORY, within_s=400.0)
    engine.read(lambda each: isinstance(each, Alive) and each.queued == 2)
    engine.send(Drop(first))
    _, messages = engine.finished(later)
    ended = [each.query_id for each in messages if isinstance(each, Finished)]
    assert ended == [first, sooner]


def test_a_running_query_is_dropped_within_a_step(engine: Engine) -> None:
    query_id = engine.submit(STORY, cap=500)
    engine.read(lambda each: isinstance(each, Progress) and each.n_generated > 1)
    engine.send(Drop(query_id))
    last, _ = engine.finished(query_id)
    assert last.ending.outcome == Outcome.CANCELED and last.timing.n_generated < 100


def test_a_waiting_query_is_dropped_and_never_runs(engine: Engine) -> None:
    first, waiting = engine.submit(STORY), engine.submit(STORY)
    engine.send(Drop(waiting))
    engine.send(Drop(waiting))
    last, _ = engine.finished(waiting)
    assert last.ending.outcome == Outcome.CANCELED and last.timing.n_generated == 0
    engine.finished(first)
    engine.send(Drop(first))        # a drop that comes too late is nothing
    assert engine.ask(STORY)[0].ending.outcome == Outcome.COMPLETED


def test_the_deadline_ends_a_query_in_the_middle(engine: Engine) -> None:
    last, messages = engine.ask(STORY, within_s=engine.time_for_tokens(80), cap=500)
    assert last.ending.outcome == Outcome.DEADLINE_MISSED
    progress = [each for each in messages if isinstance(each, Progress)]
    assert 0 < last.timing.n_generated < 500 and last.text
    assert progress[0].deadline_at_risk and last.timing.deadline_at_risk


def test_a_prompt_beyond_the_context_is_invalid(engine: Engine) -> None:
    last, _ = engine.ask('word ' * 2000)
    assert last.ending.outcome == Outcome.INVALID
    assert last.ending.error_code == ErrorCode.PROMPT_TOO_LONG and '1024' in last.ending.error_msg


def test_guaranteed_is_refused_at_once_while_another_query_runs(engine: Engine) -> None:
    too_short_s = engine.time_for_tokens(80)
    running = engine.submit(STORY, cap=80)
    engine.read(lambda each: isinstance(each, Progress))
    refused = engine.submit(STORY, within_s=too_short_s, cap=500, admission=Admission.GUARANTEED)
    last, _ = engine.finished(refused)
    assert last.ending.outcome == Outcome.INFEASIBLE and 'would do' in last.ending.error_msg
    assert last.timing.n_worst == 500 and last.timing.predicted_total_worst > too_short_s
    assert engine.finished(running)[0].ending.outcome == Outcome.COMPLETED


def test_guaranteed_with_room_is_answered(engine: Engine) -> None:
    last, _ = engine.ask(STORY, cap=4, admission=Admission.GUARANTEED)
    assert last.ending.outcome == Outcome.COMPLETED and last.timing.feasible


def test_a_sign_of_life_at_least_once_a_second(engine: Engine) -> None:
    beats_ns = []
    for _ in range(5):
        engine.read(lambda each: isinstance(each, Alive))
        beats_ns.append(time.monotonic_ns())
    gaps_s = [(later - earlier) / S for earlier, later in zip(beats_ns[1:], beats_ns[2:])]
    assert sorted(gaps_s)[len(gaps_s) // 2] < 1.0


def test_coefficients_are_adopted_if_they_are_for_this_model(
        engine: Engine, started: tuple[Engine, list[Any]]) -> None:
    own = started[1][-1].coefficients
    foreign = {**own, 'model': 'another'}
    twice = {**own, 'laws': [
        {**law, 'coefficients': [2 * value for value in law['coefficients']]}
        for law in own['laws'] if law['law'] != 'predict']}      # a stored profile has none
    engine.send(Adopt(foreign, 'topic'))
    engine.send(Adopt({'laws': 'none'}, 'topic'))
    assert engine.ask(STORY, cap=2)[0].timing.coefficients_source == 'profile'
    engine.send(Adopt(twice, 'topic'))
    timing = engine.ask(STORY, cap=2)[0].timing
    assert timing.coefficients_source == 'topic'
    assert timing.law_decode_step in [law['coefficients'] for law in twice['laws']]
    assert timing.predicted_predict > 0.0, 'the law of this predictor was measured at the start'


def test_a_profile_reports_can_be_canceled_and_takes_no_queries_meanwhile(engine: Engine) -> None:
    engine.send(RunProfile())
    engine.read(lambda each: isinstance(each, ProfileProgress))
    last, _ = engine.ask(STORY)
    assert last.ending.error_code == ErrorCode.ENGINE_NOT_READY
    engine.send(CancelProfile())
    done = engine.read(lambda each: isinstance(each, ProfileDone))[-1]
    assert done.canceled and done.coefficients is None
    assert engine.ask(STORY)[0].ending.outcome == Outcome.COMPLETED


def test_a_profile_is_refused_while_queries_run(engine: Engine) -> None:
    running = engine.submit(STORY, cap=20)
    engine.send(RunProfile())
    done = engine.read(lambda each: isinstance(each, ProfileDone))[-1]
    assert done.error_msg and not done.canceled
    engine.finished(running)


def test_a_short_profile_is_measured_stored_and_planned_with(engine: Engine) -> None:
    engine.send(RunProfile(max_tokens=64, repeats=1))
    *progress, done = engine.read(lambda each: isinstance(each, ProfileDone))
    assert not done.error_msg and Path(done.path).is_file()
    seen = [each for each in progress if isinstance(each, ProfileProgress)]
    assert seen[0].total == len(seen) and seen[0].predicted_left_s > 0.0
    assert engine.ask(STORY)[0].timing.coefficients_source == 'profile'


def test_when_asked_to_stop_it_ends_its_queries_and_itself(load: Load) -> None:
    engine = Engine(load)
    ready = engine.read(lambda each: isinstance(each, (Ready, LoadFailed)))[-1]
    assert isinstance(ready, Ready) and ready.coefficients_source == 'file'
    running, waiting = engine.submit(STORY, cap=500), engine.submit(STORY)
    engine.read(lambda each: isinstance(each, Progress) and each.stage == Stage.DECODE)
    engine.send(Shutdown())
    for query_id in (running, waiting):
        last, _ = engine.finished(query_id)
        assert last.ending.error_code == ErrorCode.SERVER_SHUTDOWN
    assert engine.process.wait(10) == 0
    with pytest.raises(ChannelClosed):
        engine.read(lambda each: False)
    engine.end()


def test_when_the_node_is_gone_so_is_the_engine(started: tuple[Engine, list[Any]]) -> None:
    engine, _ = started
    engine.submit(STORY, cap=500)
    engine.read(lambda each: isinstance(each, Progress))
    engine.hang_up()
    assert engine.process.wait(10) == 0


def test_a_model_that_is_not_there_is_said_to_be_so(tmp_path: Path) -> None:
    engine = Engine(Load(str(tmp_path / 'nothing')))
    failed = engine.read(lambda each: isinstance(each, (Ready, LoadFailed)))[-1]
    assert isinstance(failed, LoadFailed) and 'nothing' in failed.error_msg
    assert engine.process.wait(10) == 1
    engine.end()
