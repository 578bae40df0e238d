# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``timebill bench NAME``: one module of ``timebill_ros.experiments`` per benchmark."""

import argparse
import importlib
from pathlib import Path
import sys

BENCHMARKS = {
    'node': 'what the node adds to the model: overhead per query, start-up, memory',
    'accuracy': 'how well times are predicted, on queries that nobody profiled',
    'plan': 'what one planning decision costs',
    'length': 'what predicting the response length adds to the critical path',
    'pessimism': 'whether the learned pessimistic factor keeps its target, on replayed lengths',
    'prefill': 'prompts of several lengths, against transformers in the same run',
    'decode': 'steps per precision and batch width, beside what reading their bytes must take',
    'cpu': 'the embedded model on this CPU, against llama.cpp in the same run',
    'evict': 'what an eviction costs, and what it saves beside what a lower precision saves',
    'tail': 'the slowest of thousands of steps, against their median',
    'memory': 'whether thousands of queries make the engine grow',
    'budget': 'score and completion over budgets, of ours and of the baselines',
    'load': 'deadlines met under recorded arrivals, against first come first served',
    'margin': 'how much of a budget the way to the client needs',
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the benchmarks; the arguments are those of the one that is named."""
    parsers = parser.add_subparsers(dest='benchmark', required=True, metavar='NAME')
    for name, text in BENCHMARKS.items():
        child = parsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + '.')
        child.add_argument('--json', action='store_true', help='print one JSON object')
        child.add_argument('--out', type=Path, metavar='FILE', help='write that object, too')
        if name == _named():
            module = importlib.import_module(f'timebill_ros.experiments.bench_{name}')
            module.add_arguments(child)
            child.set_defaults(run_benchmark=module.run)


def _named() -> str:
    """Return the word after "bench"; a later one may be the value of an option."""
    return next((after for word, after in zip(sys.argv, sys.argv[1:]) if word == 'bench'), '')


def run(arguments: argparse.Namespace) -> int:
    """Run the benchmark."""
    return int(arguments.run_benchmark(arguments))
