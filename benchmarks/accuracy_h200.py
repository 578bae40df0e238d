# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
How well times are predicted on a GPU: ``timebill bench accuracy`` on two shapes, random weights.

    PYTHONPATH=. python3 benchmarks/accuracy_h200.py --out docs/measurements

Needs torch only; writes accuracy-SHAPE-h200.json. With --dry the same on a CPU, in small.
"""

import argparse
from pathlib import Path
import subprocess
import sys
import time

SHAPES = {
    'qwen2.5-7b': ['--queries', '90', '--load', '24', '--profile-s', '52'],
    'smollm2-135m': ['--queries', '120', '--load', '26', '--profile-s', '28']}
COMMON = [
    '--device', 'cuda', '--tiers', 'bf16,int8,int4', '--max-tokens', '32000', '--repeat', '3']
DRY = ['--device', 'cpu', '--max-tokens', '300', '--queries', '4', '--load', '3', '--profile-s',
       '3', '--short-profile', '--responses', '4', '8']


def main() -> int:
    """Run both, the second also if the first fails; returns the number of failures."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--shapes', nargs='+', default=list(SHAPES))
    parser.add_argument('--profiles', type=Path, help='keep the profiles and their samples there')
    parser.add_argument('--dry', action='store_true')
    arguments = parser.parse_args()
    failures = 0
    for shape in arguments.shapes:
        began_s = time.monotonic()
        given = list(DRY) if arguments.dry else [*COMMON, *SHAPES[shape]]
        if arguments.profiles:
            given += ['--profile-out', str(arguments.profiles / f'profile-{shape}.json')]
        failures += subprocess.run([
            sys.executable, '-m', 'timebill_ros.cli', 'bench', 'accuracy', '--shape', shape,
            '--name', f'{shape} shape', '--out',
            str(arguments.out / f'accuracy-{shape}-h200.json'), *given]).returncode != 0
        print(f'{shape}: {time.monotonic() - began_s:.0f} s in all', flush=True)
    return failures


if __name__ == '__main__':
    sys.exit(main())
