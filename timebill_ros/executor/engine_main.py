# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Start of the engine process, by ``run_module.py``: ``... engine_main --read-fd N --write-fd M``.

Little is imported before the node can be told what is missing.
"""

import argparse
import os
import sys
import traceback

from timebill_ros.engine.threads import prepare_environment
from timebill_ros.executor.lifeline import die_with_parent

# How long the talk thread may keep the model thread waiting for Python's lock; the default of 5 ms
# is many decode steps long.
_SWITCH_S = 0.0002


def main() -> int:
    """Serve the node at the other end of the two pipes; returns the exit status."""
    parser = argparse.ArgumentParser(description='The engine process of timebill_ros.')
    parser.add_argument('--read-fd', type=int, required=True, help='pipe with messages of the node')
    parser.add_argument('--write-fd', type=int, required=True, help='pipe for messages to the node')
    arguments = parser.parse_args()
    die_with_parent()
    sys.setswitchinterval(_SWITCH_S)
    prepare_environment()       # before torch is imported
    reader, writer = open(arguments.read_fd, 'rb'), open(arguments.write_fd, 'wb')
    try:
        from timebill_ros.executor.engine_loop import serve
    except ImportError as error:
        from timebill_ros.executor.messages import LoadFailed, write_message
        write_message(writer, LoadFailed(
            f'{sys.executable} cannot run the engine: {error}; "timebill setup-engine" makes an '
            'environment that can, the parameter engine_python names another'))
        return 1
    return serve(reader, writer)


if __name__ == '__main__':
    status = 1
    try:
        status = main()
    except Exception:
        traceback.print_exc()
    finally:
        # Not sys.exit: the talk thread sits in a read that only the node can end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
