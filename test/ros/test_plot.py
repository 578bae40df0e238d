# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill record`` and ``timebill plot``: what is measured can be seen."""

from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
import json
from math import nan
from pathlib import Path
import re
import subprocess
import sys
import time
from xml.etree import ElementTree

from ament_index_python.packages import get_package_share_path
import numpy as np
import pytest
from ros.robot import Robot

from timebill_ros.cli import main
from timebill_ros.experiments.plot_data import NothingToDraw, Profile, read, Record
from timebill_ros.experiments.plots import drawn_laws, expected_s, mape, pairs_of
from timebill_ros.msg import ExecutorStatus, QueryTiming, TimingLaw
from timebill_ros.msg import TimingCoefficients as TimingCoefficientsMsg
from timebill_ros.time_estimator.coefficients import save, TimingCoefficients
from timebill_ros.time_estimator.laws import (
    AFFINE, DECODE_STEP, Law, PREFILL, QUADRATIC, RECOVERY, SATURATING)

BASE = TimingCoefficients(1_700_000_000_000_000_000, 'a robot', 'a model', 'float32', '1', (
    Law(PREFILL, QUADRATIC, (1e-8, 1e-3, 0.01), worst_ratio=1.1, samples=2),
    Law(DECODE_STEP, AFFINE, (1e-5, 0.02), worst_ratio=1.2, mape=0.02, samples=2)))
RAW = {'samples': [
    {'law': PREFILL, 'n_tokens': 100, 'seconds': 0.11, 'n_done': 0, 'alpha': 0.0},
    {'law': PREFILL, 'n_tokens': 900, 'seconds': 0.2, 'n_done': 700, 'alpha': 0.0},
    {'law': DECODE_STEP, 'n_tokens': 50, 'seconds': 0.02, 'n_done': 0, 'alpha': 0.0}]}


class Page(HTMLParser):
    """What a page holds, and what it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [value for name, value in attributes if value and (
            name in ('src', 'href', 'xlink:href')) and not value.startswith('#')]


def line(**values: object) -> str:
    """Return a record of one query as a line of JSON."""
    return json.dumps({
        'n_prompt': 100, 'n_generated': 50, 'outcome': 'COMPLETED', 'prefill': 0.2, 'decode': 1.1,
        'predicted_prefill': 0.1, 'predicted_decode_realised': 1.0, 'slack': 0.5, 'alpha': 0.3,
        'time_allowance': 2.0, 'coefficients_source': 'topic', **values})


def drawn(source: Path, stem: Path) -> Page:
    """Draw a source, and return the page; the image has to be one."""
    assert main(['plot', str(source), '--out', str(stem)]) == 0
    assert Path(f'{stem}.png').read_bytes().startswith(b'\x89PNG')
    return Page(Path(f'{stem}.html').read_text(encoding='utf-8'))


def test_a_profile_becomes_an_image_and_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    save(tmp_path / 'profile.json', BASE, RAW)
    page = drawn(tmp_path / 'profile.json', tmp_path / 'out' / 'profile')
    assert 'svg' in page.tags and 'table' in page.tags and not page.fetched


def test_the_law_of_steps_behind_a_prompt_is_not_drawn_over_tokens(tmp_path: Path) -> None:
    recovery = Law(RECOVERY, SATURATING, (1e-3, 2e-3, 3e-3, 3e-3), (8192.0, 8.0, 24.0, 48.0))
    for raw in (RAW, {}):
        save(tmp_path / 'profile.json', replace(BASE, laws=(*BASE.laws, recovery)), raw)
        profile = read(tmp_path / 'profile.json')
        assert isinstance(profile, Profile)
        assert [law.law for law in drawn_laws(profile)] == [PREFILL, DECODE_STEP]
        drawn(tmp_path / 'profile.json', tmp_path / 'profile')
        assert RECOVERY in (tmp_path / 'profile.html').read_text()


def test_what_was_measured_behind_cached_tokens_is_compared_with_the_difference(
        tmp_path: Path) -> None:
    save(tmp_path / 'profile.json', BASE, RAW)
    profile = read(tmp_path / 'profile.json')
    assert isinstance(profile, Profile)
    law, behind = BASE.laws[0], profile.samples[1]
    assert expected_s(law, behind) == pytest.approx(law.seconds(900) - law.seconds(700))


def test_recorded_queries_become_an_image_and_a_page(tmp_path: Path) -> None:
    source = tmp_path / 'queries.jsonl'
    source.write_text('\n'.join([
        line(), line(outcome=3, decode=None),
        line(outcome='INFEASIBLE', prefill=None, decode=None), '']))
    page = drawn(source, tmp_path / 'queries')
    assert 'svg' in page.tags and not page.fetched
    records = read(source)
    assert [each.outcome for each in records] == ['COMPLETED', 'DEADLINE_MISSED', 'INFEASIBLE']
    assert pairs_of(records, 'decode') == [(1.0, 1.1)]
    assert len(pairs_of(records, 'prefill')) == 2
    assert mape([(1.0, 2.0), (3.0, 2.0)]) == 0.5


@pytest.mark.parametrize('content', ['', 'no JSON', '{"a": 1}', '[]', '{"coefficients": {}}'])
def test_what_cannot_be_drawn_is_said(
        tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / 'something'
    source.write_text(content)
    assert main(['plot', str(source), '--out', str(tmp_path / 'x')]) == 1
    assert str(source) in capsys.readouterr().err
    assert main(['plot', str(tmp_path / 'absent')]) == 1


def test_a_bag_is_read(tmp_path: Path) -> None:
    rosbag2 = pytest.importorskip('rosbags.rosbag2')
    from rosbags.typesys import get_types_from_msg, get_typestore, Stores
    types = get_typestore(Stores.ROS2_JAZZY)
    for kind in ('DecodeStretch', 'QueryTiming'):
        text = (get_package_share_path('timebill_ros') / 'msg' / f'{kind}.msg').read_text()
        types.register(get_types_from_msg(text, f'timebill_ros/msg/{kind}'))
    types.register(get_types_from_msg('uint8[16] uuid', 'unique_identifier_msgs/msg/UUID'))
    kind = types.types['timebill_ros/msg/QueryTiming']
    zero = types.types['builtin_interfaces/msg/Time'](sec=0, nanosec=0)
    uuid = types.types['unique_identifier_msgs/msg/UUID'](uuid=np.zeros(16, np.uint8))
    values = {
        name: {'string': '', 'bool': False, 'float64': nan}.get(field[1][0], 0)
        if field[0].name == 'BASE' else np.zeros(0) if field[1][0][1][0] == 'float64' else []
        for name, field in types.get_msgdef('timebill_ros/msg/QueryTiming').fields
        if field[0].name != 'NAME'}
    message = kind(stamp=zero, arrived=zero, goal_id=uuid, coefficients_stamp=zero, **{
        **values, 'n_prompt': 77, 'outcome': 1, 'prefill': 0.5})
    with rosbag2.Writer(tmp_path / 'bag', version=9) as writer:
        topic = writer.add_connection(
            '/timebill/timing', 'timebill_ros/msg/QueryTiming', typestore=types)
        writer.write(topic, 1, types.serialize_cdr(message, 'timebill_ros/msg/QueryTiming'))
    record, = read(tmp_path / 'bag')
    assert (record.outcome, record.timing.n_prompt, record.timing.prefill) == ('COMPLETED', 77, 0.5)
    (tmp_path / 'empty').mkdir()
    with pytest.raises((NothingToDraw, FileNotFoundError)):
        read(tmp_path / 'empty')


@pytest.fixture
def robot(ros_domain: int) -> Iterator[Robot]:
    made = Robot(BASE)
    yield made
    made.close()


def test_every_query_of_a_running_server_is_recorded(robot: Robot, tmp_path: Path) -> None:
    out = tmp_path / 'queries.jsonl'
    code = f'import sys; from timebill_ros.cli import main; sys.exit(main({["record", str(out)]}' \
        ' + ["--queries", "3"]))'
    recorder = subprocess.Popen([sys.executable, '-c', code], cwd='/')
    robot.coefficients.append(BASE)
    end_s = time.monotonic() + 30.0
    while recorder.poll() is None:
        assert time.monotonic() < end_s
        robot.answer_query(1.5)
        time.sleep(0.2)
    records = read(out)
    assert isinstance(records, list) and len(records) == 3
    assert all(isinstance(each, Record) and each.timing.n_prompt == 300 for each in records)


def test_the_layouts_name_fields_that_exist() -> None:
    config = get_package_share_path('timebill_ros') / 'config'
    curves = [each.attrib['name'] for each in ElementTree.parse(config / 'plotjuggler.xml').iter(
        'curve')]
    layout = json.loads((config / 'foxglove.json').read_text())
    paths = [path['value'] for panel in layout['configById'].values()
             for path in panel.get('paths', ())]
    assert len(curves) == len(paths) > 20
    for name in curves + [re.sub(r'{.*}', '', path) for path in paths]:
        topic, *fields = re.split(r'[./]', name.removeprefix('/timebill/'))
        message = {'timing': QueryTiming, 'status': ExecutorStatus,
                   'coefficients': TimingCoefficientsMsg}[topic]()
        if fields[0].startswith('laws['):
            message, fields = TimingLaw(), fields[1:]
        assert isinstance(getattr(message, fields[0]), (bool, int, float)), name
