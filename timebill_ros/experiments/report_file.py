# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How a benchmark's report goes out: as text, as one JSON object, and into a file."""

import argparse
from collections.abc import Callable
import json
from typing import Any

Row = dict[str, Any]


def deliver(report: Row, arguments: argparse.Namespace, text: Callable[[Row], str]) -> None:
    """Write and print a report as the arguments that all benchmarks have ask."""
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(to_json(report), encoding='utf-8')
    print(json.dumps(report) if arguments.json else text(report))


def to_json(report: Row) -> str:
    """Return one line for each row: small, and readable in a difference; raises on NaN."""
    return _expanded(report) + '\n'


def _expanded(value: Any) -> str:
    rows = value.values() if isinstance(value, dict) else value
    if not isinstance(value, (dict, list)) or not any(
            isinstance(each, (dict, list)) for each in rows):
        return json.dumps(value, allow_nan=False)
    if isinstance(value, list):
        return '[\n' + ',\n'.join(json.dumps(each, allow_nan=False) for each in value) + ']'
    return '{\n' + ',\n'.join(
        f'{json.dumps(name)}: {_expanded(each)}' for name, each in value.items()) + '}'
