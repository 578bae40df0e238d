# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Commands that need torch, given in an interpreter that has none: again, in the engine's.

Run as a script (``<engine python> in_engine_python.py ARGUMENTS...``) it is ``timebill`` there.
"""

import os
from pathlib import Path
import sys


def run_again(missing: str) -> int:
    """
    Replace this process by the same command in the engine's interpreter.

    Returns the exit status 1, with the reason on standard error, if this is that interpreter
    already or there is none. ``missing`` is the module that this one lacks.
    """
    from timebill_ros.executor.engine_command import engine_environment, engine_python

    try:
        python = engine_python()
        if python != os.path.abspath(sys.executable):
            sys.stdout.flush()
            os.execve(python, [python, str(Path(__file__).resolve()), *sys.argv[1:]],
                      engine_environment(os.environ))
        reason = f'{python} has no {missing}; "timebill setup-engine" makes an environment that has'
    except OSError as error:
        reason = str(error)
    print(f'timebill: {reason}', file=sys.stderr)
    return 1


def _load_package() -> None:
    """Import this package from where this file lies, as the engine process does."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'executor'))
    import engine_main

    engine_main.load_package()


if __name__ == '__main__':
    _load_package()
    from timebill_ros.cli import main

    sys.exit(main())
