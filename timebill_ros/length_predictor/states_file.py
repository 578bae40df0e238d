# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The file of target states that a probe is trained on and evaluated with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Sequence

import numpy as np
from numpy.typing import NDArray

from timebill_ros.length_predictor.collect import Lengths
from timebill_ros.length_predictor.data import Prompt
from timebill_ros.length_predictor.states import read_states
from timebill_ros.length_predictor.target import Target


@dataclass
class StatesFile:
    """
    States of one layer of a target: at the last prompt token, and at some decode steps.

    ``prompt`` [prompts, d_model]; ``decode`` [rows, d_model] with the prompt's row and the tokens
    generated so far.
    """

    target: str
    layer: int
    ids: List[str]
    n_prompt: NDArray[np.int64]
    prompt: NDArray[np.float16]
    decode_row: NDArray[np.int64]
    decode_step: NDArray[np.int64]
    decode: NDArray[np.float16]

    def save(self, path: Path) -> None:
        """Write the file (npz)."""
        np.savez_compressed(
            path,
            target=self.target,
            layer=self.layer,
            ids=np.array(self.ids),
            n_prompt=self.n_prompt,
            prompt=self.prompt,
            decode_row=self.decode_row,
            decode_step=self.decode_step,
            decode=self.decode,
        )

    @staticmethod
    def load(path: Path) -> 'StatesFile':
        """Read a file written by ``save``."""
        with np.load(path, allow_pickle=False) as z:
            return StatesFile(
                str(z['target']),
                int(z['layer']),
                [str(i) for i in z['ids']],
                z['n_prompt'],
                z['prompt'],
                z['decode_row'],
                z['decode_step'],
                z['decode'],
            )


def collect_states(
    target: Target,
    prompts: Sequence[Prompt],
    lengths: Lengths,
    layer: int,
    steps: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> StatesFile:
    """
    Read the states of every prompt that has a length, and of its answer at ``steps``.

    The answers' ids have to be in the length file (collect with ``keep_tokens``) unless ``steps``
    is empty.
    """
    kept = [p for p in prompts if p.prompt_id in lengths.rows]
    ids = [target.prompt_ids(p.text) for p in kept]
    answers: List[List[int]] = [lengths.rows[p.prompt_id].get('tokens', []) for p in kept]
    if steps and not all(answers):
        raise ValueError(
            'the length file holds no answers; collect it with --keep-tokens to read decode steps'
        )
    reached = [[s for s in steps if s < len(answer)] for answer in answers]
    prompt_states: Dict[int, NDArray[np.float16]] = {}
    rows: List[int] = []
    decode_steps: List[int] = []
    decode: List[NDArray[np.float16]] = []
    for start in range(0, len(kept), 1000):
        part = range(start, min(start + 1000, len(kept)))
        states, _ = read_states(
            target,
            [ids[i] + answers[i][: max(reached[i], default=0)] for i in part],
            [[len(ids[i]) - 1 + s for s in (0, *reached[i])] for i in part],
            [layer],
        )
        for i, state in zip(part, states):
            prompt_states[i] = state[0, 0]
            rows += [i] * len(reached[i])
            decode_steps += reached[i]
            decode += list(state[1:, 0])
        progress(part.stop, len(kept))
    width = target.model.config.hidden_size
    return StatesFile(
        target.key,
        layer,
        [p.prompt_id for p in kept],
        np.array([len(i) for i in ids]),
        np.stack([prompt_states[i] for i in range(len(kept))]),
        np.array(rows, np.int64),
        np.array(decode_steps, np.int64),
        np.stack(decode) if decode else np.zeros((0, width), np.float16),
    )
