# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Training of a prompt classifier: seeded, early stopping on the validation prompts."""

import copy
from dataclasses import dataclass
import math
import random
from typing import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor

from timebill_ros.length_predictor.classifier import PromptClassifier
from timebill_ros.length_predictor.target import batches_by_length


@dataclass
class FitConfig:
    """How a classifier is trained."""

    epochs: int = 4
    batch_rows: int = 64
    learning_rate: float = 5e-4
    weight_decay: float = 0.01
    warmup_share: float = 0.06
    patience: int = 2  # epochs without a better validation loss before training stops
    seed: int = 0
    regression: bool = False  # squared error on the one output instead of cross-entropy


def fit(
    model: PromptClassifier,
    sequences: Sequence[Sequence[int]],
    labels: NDArray[np.float32],
    train: Sequence[int],
    validation: Sequence[int],
    config: FitConfig,
    report: Callable[[int, float, float], None] = lambda epoch, train_loss, validation_loss: None,
) -> float:
    """
    Train; leave the model with the weights of its best epoch and return their validation loss.

    ``labels`` is [rows, classes] of probabilities (a row's answers in several runs averaged), or
    [rows, 1] of values for regression. Master weights stay in float32; products run in bfloat16.
    """
    device = next(model.parameters()).device
    torch.manual_seed(config.seed)
    shuffle = random.Random(config.seed)
    parameters = [p for _, p in model.trained()]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay
    )
    n_steps = config.epochs * math.ceil(len(train) / config.batch_rows)
    warmup = max(1, int(config.warmup_share * n_steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / warmup)
            * 0.5
            * (1 + math.cos(math.pi * min(1.0, step / n_steps)))
        ),
    )
    target = torch.as_tensor(labels, dtype=torch.float32)
    best, best_state, since = math.inf, _copy_trained(model), 0
    for epoch in range(config.epochs):
        model.train()
        total = torch.zeros((), device=device)
        for batch in _mixed_batches(sequences, train, config.batch_rows, shuffle):
            ids, n_tokens = pad([sequences[i] for i in batch], device)
            with torch.autocast(device.type, torch.bfloat16):
                logits = model(ids, n_tokens)
            loss = loss_of(logits.float(), target[batch].to(device), config.regression)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(batch)
        logits = predict_logits(model, [sequences[i] for i in validation])
        score = float(
            loss_of(torch.from_numpy(logits), target[list(validation)], config.regression)
        )
        report(epoch, float(total) / len(train), score)
        if score < best:
            best, best_state, since = score, _copy_trained(model), 0
        else:
            since += 1
            if since >= config.patience:
                break
    model.load_state_dict(best_state, strict=False)
    return best


def loss_of(logits: Tensor, target: Tensor, regression: bool) -> Tensor:
    """Return the mean loss of rows of logits against probabilities (or values)."""
    if regression:
        return torch.nn.functional.mse_loss(logits, target)
    return torch.nn.functional.cross_entropy(logits, target)


@torch.inference_mode()
def predict_logits(
    model: PromptClassifier, sequences: Sequence[Sequence[int]], max_batch_tokens: int = 100_000
) -> NDArray[np.float32]:
    """Return logits [sequences, classes]."""
    device = next(model.parameters()).device
    model.eval()
    out: dict[int, Tensor] = {}
    for batch in batches_by_length([len(s) for s in sequences], 512, max_batch_tokens, 0):
        ids, n_tokens = pad([sequences[i] for i in batch], device)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(ids, n_tokens).float().cpu()
        out.update(zip(batch, logits))
    return torch.stack([out[i] for i in range(len(sequences))]).numpy()


def pad(sequences: Sequence[Sequence[int]], device: torch.device) -> 'tuple[Tensor, Tensor]':
    """Return ids [rows, longest], padded on the right, and each row's number of tokens."""
    ids = torch.zeros(len(sequences), max(len(s) for s in sequences), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
    return ids.to(device), torch.tensor([len(s) for s in sequences], device=device)


def _mixed_batches(
    sequences: Sequence[Sequence[int]], rows: Sequence[int], size: int, shuffle: random.Random
) -> Iterator[list[int]]:
    """Yield shuffled batches of similar length: sorted within random pools of 32 batches."""
    order = list(rows)
    shuffle.shuffle(order)
    batches = []
    for start in range(0, len(order), 32 * size):
        pool = sorted(order[start : start + 32 * size], key=lambda i: len(sequences[i]))
        batches += [pool[i : i + size] for i in range(0, len(pool), size)]
    shuffle.shuffle(batches)
    yield from batches


def _copy_trained(model: PromptClassifier) -> dict[str, Tensor]:
    return {name: copy.deepcopy(value.detach()) for name, value in model.trained()}
