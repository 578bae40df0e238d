# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Start of the engine process: ``<engine python> engine_main.py --read-fd N --write-fd M``.

The engine runs the node's own copy of this package in another interpreter. The package is loaded
from the place of this file, and the directory that holds it stays off the search path: it is the
site-packages of the node's interpreter, whose libraries were not built for this one.
"""

import argparse
import importlib.util
import os
from pathlib import Path
import sys
import traceback


def load_package() -> None:
    """
    Import ``timebill_ros`` from where this file lies, and from nowhere else.

    Its folders leave the search path, where the one of a script stands first: a module there can
    have the name of one of Python's own (``cli/profile.py``).
    """
    package = Path(__file__).resolve().parents[1]
    sys.path[:] = [
        path for path in sys.path if package not in Path(path or '.').resolve().parents]
    spec = importlib.util.spec_from_file_location(
        package.name, package / '__init__.py', submodule_search_locations=[str(package)])
    if spec is None or spec.loader is None:
        raise ImportError(f'{package} is not a package')
    module = importlib.util.module_from_spec(spec)
    sys.modules[package.name] = module
    spec.loader.exec_module(module)


def main() -> int:
    """Serve the node at the other end of the two pipes; returns the exit status."""
    parser = argparse.ArgumentParser(description='The engine process of timebill_ros.')
    parser.add_argument('--read-fd', type=int, required=True, help='pipe with messages of the node')
    parser.add_argument('--write-fd', type=int, required=True, help='pipe for messages to the node')
    arguments = parser.parse_args()
    load_package()
    from timebill_ros.executor.lifeline import die_with_parent
    die_with_parent()
    from timebill_ros.engine.threads import prepare_environment
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
