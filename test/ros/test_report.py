# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The report: one page that needs nothing else, made from the rows alone."""

import gzip
import json
from pathlib import Path

import pytest

from timebill_ros.cli import main
from timebill_ros.experiments import report
from timebill_ros.experiments.recorder import ROWS
from timebill_ros.experiments.run import summarise

HEADER = {
    'experiment': 'budgets', 'quick': True, 'model': 'embedded', 'device': 'auto', 'tiers': [],
    'seed': 7, 'items': 0, 'methods': [], 'ros': False, 'longbench': False}
START = {
    'case': 'start/1', 'of': 1, 'date': '2026-11-22', 'commit': 'abc', 'versions': {'torch': '2'},
    'info': {'name': 'Small', 'device': 'Some GPU', 'dtype': 'bfloat16', 'tiers': ['bf16']}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of an experiment in which vanilla did better than ours."""
    rows = [START, {'case': 'skip/x', 'of': 1, 'skipped': 'Skip-Next', 'why': 'it is <refused>'}]
    for kind, method, score in (
            ('pilot', '', 1.0), ('kill', 'vanilla', 1.0), ('kill', 'joint', 0.5)):
        rows.append({
            'case': f'{kind}/{method}', 'of': 1, 'kind': kind, 'method': method, 'score': score,
            'item': 'needle/0', 'outcome': 'COMPLETED', 'budget_s': 2.0, 'elapsed_s': 1.0,
            'timing': {'feasible': True}})
    rows.append({'case': 'progress/1', 'of': 1, 'planned': 5, 'done': 3})
    place = tmp_path / 'budgets'
    place.mkdir()
    with gzip.open(place / f'{ROWS}.gz', 'wt', encoding='utf-8') as out:
        out.writelines(json.dumps(row) + '\n' for row in [HEADER, *rows])
    summarise(place)
    return place


def test_page_says_what_was_measured_and_what_was_lost(folder: Path) -> None:
    page = report.page(report.experiments_in([folder.parent]))
    assert '<svg' in page
    assert 'Small (bfloat16; tiers bf16) on Some GPU, 2026-11-22, commit abc, seed 7' in page
    assert '3 queries' in page
    assert '2 of 5 cases not run' in page
    assert 'vanilla 1.000 &gt; ours 0.500' in page
    assert 'it is &lt;refused&gt;' in page
    for request in ('src=', 'href="http', '@import', 'url(http'):
        assert request not in page


def test_command_writes_page_and_figures(folder: Path, tmp_path: Path) -> None:
    page, figures = tmp_path / 'out' / 'page.html', tmp_path / 'figures'
    arguments = ['report', str(folder.parent), '--out', str(page), '--figures', str(figures)]
    assert main(arguments) == 0
    assert page.is_file()
    assert [path.name for path in figures.iterdir()] == ['budgets-kill.png']


def test_predictors_are_shown_beside(folder: Path, tmp_path: Path) -> None:
    rows = [{'predictor': name, 'n': 9, 'mae': mae, 'r2': 0.5, 'spearman': 0.7}
            for name, mae in (('the target itself, run 2', 50.0), ('probe', 72.0), ('s3', 70.0))]
    tables, page = tmp_path / 'tables.json', tmp_path / 'page.html'
    tables.write_text(json.dumps({'date': '2026-11-22', 'target': 'small', 'comparison': rows}))
    arguments = ['report', str(folder.parent), '--predictors', str(tables), '--out', str(page)]
    assert main(arguments) == 0
    written = page.read_text(encoding='utf-8')
    assert 'MAE: s3 70.0, probe 72.0' in written
    assert 'MAE: the target itself' not in written


def test_nothing_to_report_is_an_error(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['report', str(tmp_path), '--out', str(tmp_path / 'page.html')]) == 1
    assert 'timebill experiment' in capsys.readouterr().err
