# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""CPU threads and environment of the engine process; imports no torch, which reads them."""

import os


def prepare_environment() -> None:
    """
    Set what the libraries read when they are loaded; call it before the first import of torch.

    OpenMP's threads spin between two products by default. On a machine with few cores that another
    process also uses, a spinning thread keeps the one it waits for off the core: steps were seen to
    take 10 to 50 times as long. NumPy's products here are those of the length predictor, far too
    small to be shared among threads. What the user has set is respected.
    """
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
    os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
    os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')
    os.environ.setdefault('HF_HUB_DISABLE_TELEMETRY', '1')


def forbid_downloads() -> None:
    """Keep the hub's library off the network, whatever is asked of it later."""
    os.environ['HF_HUB_OFFLINE'] = '1'


def choose_threads(requested: int) -> int:
    """Return the threads for the model: as asked, else $OMP_NUM_THREADS, else all our cores."""
    if requested > 0:
        return requested
    from_environment = os.environ.get('OMP_NUM_THREADS', '')
    if from_environment.isdigit() and int(from_environment) > 0:
        return int(from_environment)
    return len(os.sched_getaffinity(0))


def step_threads(requested: int) -> list[int]:
    """Return the numbers of threads worth trying for a decode step; one where it was asked for."""
    most = choose_threads(requested)
    if requested > 0 or os.environ.get('OMP_NUM_THREADS'):
        return [most]
    return sorted({most, -(-most // 2), 1}, reverse=True)
