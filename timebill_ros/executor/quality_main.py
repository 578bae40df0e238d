# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Measures a quality profile in the engine's interpreter, by ``run_module.py``: ``... JOB``.

JOB is a JSON object: ``load`` (fields of ``messages.Load``), ``prompts`` (file), ``lengths``,
``most`` (prompts; 0 = all) and ``out`` (file; '' = beside the timing profiles). Standard output
has a JSON object per line: ``{"what": ..., "done": ..., "total": ...}`` while it works, at the end
``{"path": ..., "quality": ..., "about": ...}`` or ``{"error": ...}``.
"""

import json
from pathlib import Path
import sys
from typing import Any

from timebill_ros.engine.threads import prepare_environment


def main(job: dict[str, Any]) -> int:
    """Do the job; returns the exit status."""
    prepare_environment()       # before torch is imported
    try:
        tell(measured(job))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        tell({'error': str(error)})
        return 1
    return 0


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """Load the model, measure, and store the profile."""
    from dataclasses import replace

    from timebill_ros.budget.quality import save
    from timebill_ros.budget.quality_files import quality_path
    from timebill_ros.engine.engine import Engine
    from timebill_ros.engine.quality_report import measure_profile, read_prompts
    from timebill_ros.executor.messages import Load
    from timebill_ros.paths import cache_dir
    prompts = read_prompts(Path(job['prompts']))[:job['most'] or None]
    load = Load(**job['load'])
    engine = Engine.load(
        load, lambda what, fraction: tell({'what': what, 'done': round(100 * fraction),
                                           'total': 100}))
    profile, about = measure_profile(
        engine, prompts, tuple(job['lengths']),
        lambda done, total: tell({'what': 'prompts', 'done': done, 'total': total}))
    about.update(prompts_file=Path(job['prompts']).name, notes=engine.notes)
    path = quality_path(cache_dir(load.cache_dir), engine.info.key, engine.device.type)
    if job['out']:      # to be shipped: it holds wherever the model has this name
        path, profile = Path(job['out']), replace(profile, model=engine.info.name)
    save(path, profile, about)
    return {'path': str(path), 'quality': profile.to_dict(), 'about': about}


def tell(message: dict[str, Any]) -> None:
    """Write one line."""
    print(json.dumps(message), flush=True)


if __name__ == '__main__':
    sys.exit(main(json.loads(sys.argv[1])))
