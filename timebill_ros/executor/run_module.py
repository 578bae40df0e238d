# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Runs a module of this package elsewhere: ``<engine python> run_module.py MODULE ARGUMENTS...``.

The engine's interpreter runs the node's own copy of this package. It is loaded from the place of
this file, and the directory that holds it stays off the search path: that is the site-packages of
the node's interpreter, whose libraries were not built for this one.
"""

import importlib.util
from pathlib import Path
import runpy
import sys


def load_package() -> None:
    """Import ``timebill_ros`` from where this file lies, and from nowhere else."""
    package = Path(__file__).resolve().parents[1]
    # This script's folder stands first where Python has no "safe path": it has modules of its own.
    sys.path[:] = [
        path for path in sys.path if package not in Path(path or '.').resolve().parents]
    spec = importlib.util.spec_from_file_location(
        package.name, package / '__init__.py', submodule_search_locations=[str(package)])
    if spec is None or spec.loader is None:
        raise ImportError(f'{package} is not a package')
    module = importlib.util.module_from_spec(spec)
    sys.modules[package.name] = module
    spec.loader.exec_module(module)


if __name__ == '__main__':
    load_package()
    del sys.argv[0]         # the module's name is in its place now
    runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
