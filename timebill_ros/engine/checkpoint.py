# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The safetensors files of a checkpoint, read by tensor name. Pickled weights are refused."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Optional

from safetensors import safe_open, SafetensorError
import torch
from torch import Tensor

from timebill_ros.engine.config import read_json
from timebill_ros.engine.errors import ModelError

_INDEX = 'model.safetensors.index.json'
_SINGLE = 'model.safetensors'
_PICKLED = ('*.bin', '*.pt', '*.pth', '*.ckpt')


class Checkpoint:
    """Reads tensors into one device and dtype; a context manager that closes its files."""

    def __init__(self, directory: Path, device: torch.device, dtype: torch.dtype) -> None:
        """Find the files; raises ModelError if there is nothing that is safe to read."""
        self._directory = directory
        self._device = device
        self._dtype = dtype
        self._files = ExitStack()
        self._open: dict[str, Any] = {}
        self._file_of = _files_by_tensor(directory)

    def __enter__(self) -> 'Checkpoint':
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def stack(self, names: list[str], rows: list[int], columns: int = 0) -> Tensor:
        """
        Read tensors of ``rows[i]`` rows (and ``columns``, unless 0) into one, along the rows.

        Raises ModelError when one is missing or has another shape.
        """
        shape = (sum(rows), columns) if columns else (sum(rows),)
        out = torch.empty(shape, dtype=self._dtype, device=self._device)
        start = 0
        for name, count in zip(names, rows):
            part = self._read(name)
            expected = (count, columns) if columns else (count,)
            if tuple(part.shape) != expected:
                raise ModelError(f'{self._directory}: tensor {name} has shape '
                                 f'{tuple(part.shape)}, config.json says {expected}')
            out[start:start + count].copy_(part)
            start += count
        return out

    def _read(self, name: str) -> Tensor:
        file = _SINGLE if self._file_of is None else self._file_of.get(name)
        if file is None:
            raise ModelError(f'{self._directory}: the checkpoint has no tensor {name}')
        try:
            if file not in self._open:
                opened = safe_open(self._directory / file, framework='pt')
                self._open[file] = self._files.enter_context(opened)
            tensor: Tensor = self._open[file].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(f'{self._directory / file}: cannot read {name}: {error}') from error
        if not tensor.is_floating_point():
            raise ModelError(f'{self._directory / file}: tensor {name} holds {tensor.dtype}; '
                             'quantised checkpoints are not supported')
        return tensor


def _files_by_tensor(directory: Path) -> Optional[dict[str, str]]:
    """Return tensor name to file name, or None where one file holds all."""
    index = read_json(directory / _INDEX)
    if index is not None:
        files = index.get('weight_map')
        if not isinstance(files, dict):
            raise ModelError(f'{directory / _INDEX} has no weight_map from tensors to files')
        for file in files.values():
            if not isinstance(file, str) or Path(file).name != file:
                raise ModelError(f'{directory / _INDEX} names what is no file of its directory: '
                                 f'{file}')
        return files
    if (directory / _SINGLE).is_file():
        return None
    if any(path for pattern in _PICKLED for path in directory.glob(pattern)):
        raise ModelError(
            f'{directory} holds its weights as pickle files (.bin, .pt), which can run code when '
            'they are read, and are refused; get or convert the model as safetensors')
    if any(directory.glob('*.gguf')):
        raise ModelError(f'{directory} holds GGUF files; give the path of the one to load')
    raise ModelError(f'{directory} has neither {_SINGLE} nor {_INDEX}')
