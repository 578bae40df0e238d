# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Commands that need torch, given in an interpreter that has none: again, in the engine's."""

import os
import sys

from timebill_ros.executor.engine_command import engine_environment, engine_python, module_argv


def run_again(missing: str) -> int:
    """
    Replace this process by the same command in the engine's interpreter.

    Returns the exit status 1, with the reason on standard error, if this is that interpreter
    already or there is none. ``missing`` is the module that this one lacks.
    """
    try:
        python = engine_python()
        if python != os.path.abspath(sys.executable):
            sys.stdout.flush()
            os.execve(python, module_argv(python, 'cli', *sys.argv[1:]),
                      engine_environment(os.environ))
        reason = f'{python} has no {missing}; "timebill setup-engine" makes an environment that has'
    except OSError as error:
        reason = str(error)
    print(f'timebill: {reason}', file=sys.stderr)
    return 1
