# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The file of target states that a probe is trained on and evaluated with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, Sequence
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from timebill_ros.length_predictor.collect import Lengths
from timebill_ros.length_predictor.data import Prompt
from timebill_ros.length_predictor.states import read_states
from timebill_ros.length_predictor.target import Target

# Stored states have steps of this many standard deviations of their feature: far finer than the
# noise that training adds, and a quarter of the room.
_STEP_DEVIATIONS = 1 / 8


@dataclass
class StatesFile:
    """
    States of some layers of a target: at the last prompt token, and at some decode steps.

    ``prompt`` [prompts, layers, d_model]; ``mean`` [prompts, d_model], over the prompt's tokens at
    layer ``decode_layer``; ``decode`` [rows, d_model] of that layer with the prompt's row and the
    tokens generated so far.
    """

    target: str
    layers: list[int]
    decode_layer: int
    ids: list[str]
    n_prompt: NDArray[np.int64]
    prompt: NDArray[np.float32]
    mean: NDArray[np.float32]
    decode_row: NDArray[np.int64]
    decode_step: NDArray[np.int64]
    decode: NDArray[np.float32]

    def at(self, layer: int) -> NDArray[np.float32]:
        """Return the states [prompts, d_model] of one layer; ValueError if they were not read."""
        if layer not in self.layers:
            raise ValueError(
                f'the states file has the layers {self.layers}, not {layer}; '
                'set states: layers: in the configuration and read them again'
            )
        return self.prompt[:, self.layers.index(layer)]

    def save(self, path: Path) -> None:
        """Write the file (npz), states in 8 bits."""
        stored: dict[str, NDArray[Any]] = {
            'ids': np.array(self.ids),
            'n_prompt': self.n_prompt,
            'decode_row': self.decode_row,
            'decode_step': self.decode_step,
        }
        for name in ('prompt', 'mean', 'decode'):
            stored.update(_packed(name, getattr(self, name)))
        np.savez_compressed(
            path, target=self.target, layers=self.layers, decode_layer=self.decode_layer, **stored
        )

    @staticmethod
    def load(path: Path) -> 'StatesFile':
        """Read a file written by ``save``; ValueError if it is none."""
        try:
            with np.load(path, allow_pickle=False) as z:
                return StatesFile(
                    str(z['target']),
                    [int(layer) for layer in z['layers']],
                    int(z['decode_layer']),
                    [str(i) for i in z['ids']],
                    z['n_prompt'],
                    _unpacked('prompt', z),
                    _unpacked('mean', z),
                    z['decode_row'],
                    z['decode_step'],
                    _unpacked('decode', z),
                )
        except (ValueError, KeyError, EOFError, BadZipFile) as error:
            raise ValueError(f'{path} is no whole file of states: {error}') from error


def _packed(name: str, values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    if not len(values):
        return {name: values.astype(np.int8)}
    mean = values.mean(0, dtype=np.float64).astype(np.float32)
    step = (values.std(0, dtype=np.float64) * _STEP_DEVIATIONS + 1e-6).astype(np.float32)
    codes = np.clip(np.round((values - mean) / step), -127, 127).astype(np.int8)
    return {name: codes, f'{name}_centre': mean, f'{name}_unit': step}


def _unpacked(name: str, stored: Any) -> NDArray[np.float32]:
    codes = stored[name].astype(np.float32)
    return codes * stored[f'{name}_unit'] + stored[f'{name}_centre'] if len(codes) else codes


def collect_states(
    target: Target,
    prompts: Sequence[Prompt],
    lengths: Optional[Lengths],
    layers: Sequence[int],
    decode_layer: int,
    steps: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StatesFile:
    """
    Read the states of every prompt that has a length, and of its answer at ``steps``.

    The answers' ids have to be in the length file (collect with ``keep_tokens``) unless ``steps``
    is empty. Without lengths all prompts are read, and no steps.
    """
    if decode_layer not in layers:
        raise ValueError(f'the decode layer {decode_layer} is not among the layers {layers}')
    kept = [p for p in prompts if lengths is None or p.prompt_id in lengths.rows]
    ids = target.prompt_ids([p.text for p in kept])
    answers: list[list[int]] = [[] for _ in kept]
    if lengths is not None:
        answers = [lengths.rows[p.prompt_id].get('tokens', []) for p in kept]
        if steps and not all(answers):
            raise ValueError(
                'the length file holds no answers; collect it with --keep-tokens to read decode '
                'steps'
            )
    reached = [[s for s in steps if s < len(answer)] for answer in answers]
    prompt: list[NDArray[np.float16]] = []
    mean: list[NDArray[np.float16]] = []
    rows: list[int] = []
    decode_steps: list[int] = []
    decode: list[NDArray[np.float16]] = []
    at = list(layers).index(decode_layer)
    for start in range(0, len(kept), 5000):
        part = range(start, min(start + 5000, len(kept)))
        states, means = read_states(
            target,
            [ids[i] + answers[i][: max(reached[i], default=0)] for i in part],
            [[len(ids[i]) - 1 + s for s in (0, *reached[i])] for i in part],
            layers,
            at,
        )
        for i, state in zip(part, states):
            prompt.append(state[0])
            rows += [i] * len(reached[i])
            decode_steps += reached[i]
            decode += list(state[1:, at])
        mean += list(means)
        progress(part.stop, len(kept))
    width = target.model.config.hidden_size
    return StatesFile(
        target.key,
        list(layers),
        decode_layer,
        [p.prompt_id for p in kept],
        np.array([len(i) for i in ids]),
        np.stack(prompt).astype(np.float32),
        np.stack(mean).astype(np.float32),
        np.array(rows, np.int64),
        np.array(decode_steps, np.int64),
        np.stack(decode).astype(np.float32) if decode else np.zeros((0, width), np.float32),
    )
