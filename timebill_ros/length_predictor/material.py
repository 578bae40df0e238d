# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What the tables are made from: the files that collecting and training left."""

from dataclasses import dataclass, field
from typing import Any, Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from timebill_ros.length_predictor.collect import Lengths
from timebill_ros.length_predictor.data import Prompt
from timebill_ros.length_predictor.predictions import Predictions
from timebill_ros.length_predictor.predictor import Predictor
from timebill_ros.length_predictor.split import Split
from timebill_ros.length_predictor.states_file import StatesFile
from timebill_ros.length_predictor.train import HeadTraining, held_out_rows, Rows

Table = list[dict[str, Any]]


@dataclass
class Material:
    """What the tables are made from; rows are the prompts of the states file."""

    prompts: Sequence[Prompt]
    split: Split
    run: Lengths                        # what is measured against
    other_runs: list[Lengths]           # of the same target with other arithmetic
    states: StatesFile
    probe: Predictor                    # the shipped checkpoint
    predictions: list[Predictions]
    training: HeadTraining
    say: Callable[[str], None]
    variations: list[Rows] = field(default_factory=list)    # at the layer that the probe reads

    def __post_init__(self) -> None:
        """Put everything into the order of the states file's rows."""
        source = {p.prompt_id: p.source for p in self.prompts}
        ids = self.states.ids
        self.cap = int(self.run.header['cap'])
        self.lengths = np.array([self.run.rows[i]['n'] for i in ids])
        self.sources = np.array([source[i] for i in ids])
        self.held_out = held_out_rows(ids, self.split)
        self.truth = self.lengths[self.held_out]
        self._row = {prompt_id: row for row, prompt_id in enumerate(ids)}

    def rows(self, layer: int) -> Rows:
        """Return the training rows of one layer's states."""
        return Rows(self.states.at(layer), self.lengths[:, None], self.states.ids)

    def truth_of(self, said: Predictions) -> NDArray[np.int64]:
        """Return the lengths of the prompts that were predicted."""
        return self.lengths[[self._row[i] for i in said.ids]]

    def sources_of(self, said: Predictions) -> list[str]:
        """Return the sources of the prompts that were predicted."""
        return [str(self.sources[self._row[i]]) for i in said.ids]
