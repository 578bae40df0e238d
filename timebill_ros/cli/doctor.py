# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill doctor``: what is missing on this machine, and how to mend it."""

import argparse
from dataclasses import asdict
import json

from timebill_ros.doctor import examine, MISSING


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the arguments."""
    parser.epilog = 'Exit status: 0 queries can be answered, 1 something that they need is missing'
    parser.add_argument('--json', action='store_true', help='print one JSON object')
    parser.add_argument(
        '--engine-python',
        default='',
        metavar='PYTHON',
        help='look at this interpreter instead of the one that the node would take',
    )
    parser.add_argument(
        '--cache-dir', default='', metavar='DIR', help='as the parameter cache_dir of the node'
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the findings as they come."""
    findings = []
    for finding in examine(arguments.engine_python, arguments.cache_dir):
        findings.append(finding)
        if not arguments.json:
            print(f'{finding.status:8} {finding.name:15} {finding.detail}', flush=True)
            if finding.mend:
                print(f'{"":24} -> {finding.mend}', flush=True)
    healthy = all(finding.status != MISSING for finding in findings)
    if arguments.json:
        print(json.dumps({'ok': healthy, 'findings': [asdict(finding) for finding in findings]}))
    elif healthy:
        print('Queries can be answered: timebill serve')
    return 0 if healthy else 1
