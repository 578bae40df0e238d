# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
``timebill bench budget``: score and completion over budgets, of ours and of the baselines.

It is ``timebill experiment budgets`` with its table printed. The rows stay in ``--rows``, where
a second start goes on.
"""

import argparse
from contextlib import redirect_stdout
import sys
from typing import Any

from timebill_ros.cli import experiment
from timebill_ros.experiments.report_file import deliver
from timebill_ros.experiments.run import read_summary

NAME = 'budgets'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments: those of every experiment."""
    experiment.add_settings(parser, '--rows')


def run(arguments: argparse.Namespace) -> int:
    """Run the experiment, or go on with it, and print a table or one JSON object."""
    with redirect_stdout(sys.stderr):
        status = experiment.run(argparse.Namespace(
            **{**vars(arguments), 'names': [NAME], 'out': arguments.rows}))
    folder = arguments.rows / NAME
    if not (folder / 'summary.json').is_file():
        return status
    summary = read_summary(folder)
    deliver(summary, arguments, table)
    return status


def table(summary: dict[str, Any]) -> str:
    """Return the summary for people."""
    results = summary['results']
    missing = summary['cases_planned'] - summary['cases_done']
    lines = [
        f'{summary["machine"].get("date", "")}, {summary["queries"]} queries, unhurried vanilla '
        f'scores {results["unhurried"]["score"]:.3f}'
        + (f'; {missing} of {summary["cases_planned"]} cases are missing' if missing else ''),
        f'{"strategy":10}{"budget, s":>10}  {"method":16}{"n":>5}{"score":>8}{"completed":>11}'
        f'{"truncated":>11}']
    lines += [
        f'{row["strategy"]:10}{row["budget_s"]:10.3g}  {row["method"]:16}{row["n"]:5}'
        f'{row["score"]:8.3f}{row["completed"]:11.1%}{row["truncated"]:11.1%}'
        for row in results['table']]
    return '\n'.join([*lines, *(f'behind: {each}' for each in results['losses'])])
