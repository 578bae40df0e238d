# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training of a head on fixed features."""

import copy
from dataclasses import dataclass
import math
from typing import Optional, Sequence

import numpy as np
from numpy.typing import NDArray
import torch
from torch import nn, Tensor

from timebill_ros.length_predictor.head import Head


@dataclass
class HeadConfig:
    """How one member of a head is trained."""

    hidden: int = 256
    dropout: float = 0.3
    input_noise: float = 0.1  # standard deviation added to standardised features while training
    epochs: int = 40
    batch_rows: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    patience: int = 6
    seed: int = 0


def standardisation(
    features: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return mean and scale per feature; a feature that never changes gets scale 1."""
    mean = features.mean(0, dtype=np.float64)
    scale = features.std(0, dtype=np.float64)
    return mean.astype(np.float32), np.where(scale > 1e-6, scale, 1.0).astype(np.float32)


def fit_head(
    features: NDArray[np.float32],
    labels: NDArray[np.float32],
    train: Sequence[int],
    validation: Sequence[int],
    config: HeadConfig,
    scaling: Optional[tuple[NDArray[np.float32], NDArray[np.float32]]] = None,
    device: str = 'cpu',
) -> tuple[Head, float]:
    """
    Train one member; return it and its best validation cross-entropy.

    ``features`` [rows, features], ``labels`` [rows, classes] of probabilities; ``train`` and
    ``validation`` are rows.
    """
    mean, scale = scaling if scaling is not None else standardisation(features[list(train)])
    torch.manual_seed(config.seed)
    x = torch.from_numpy(np.clip((features - mean) / scale, -8.0, 8.0)).to(device)
    y = torch.from_numpy(labels).to(device)
    n_train = torch.as_tensor(list(train), device=device)
    n_validation = torch.as_tensor(list(validation), device=device)
    model = nn.Sequential(
        nn.Linear(x.shape[1], config.hidden),
        nn.SiLU(),
        nn.Dropout(config.dropout),
        nn.Linear(config.hidden, y.shape[1]),
    ).to(device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    steps = config.epochs * math.ceil(len(n_train) / config.batch_rows)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, best_state, since = math.inf, copy.deepcopy(model.state_dict()), 0
    for _ in range(config.epochs):
        model.train()
        for rows in n_train[torch.randperm(len(n_train)).to(device)].split(config.batch_rows):
            noisy = x[rows] + config.input_noise * torch.randn(
                len(rows), x.shape[1], device=device
            )
            loss = nn.functional.cross_entropy(model(noisy), y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        score = _validation_loss(model, x[n_validation], y[n_validation])
        if score < best:
            best, best_state, since = score, copy.deepcopy(model.state_dict()), 0
        else:
            since += 1
            if since >= config.patience:
                break
    w1, b1, w2, b2 = (
        best_state[name].float().cpu().numpy()[None]
        for name in ('0.weight', '0.bias', '3.weight', '3.bias')
    )
    return Head(mean, scale, w1, b1, w2, b2), best


@torch.inference_mode()
def _validation_loss(model: nn.Module, x: Tensor, y: Tensor) -> float:
    model.eval()
    return float(nn.functional.cross_entropy(model(x), y))
