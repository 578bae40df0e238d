# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""
Matrix products of tensor code, in the layout that is fastest on a CPU.

Where decode steps are compiled (``engine.cpu``), these serve the prefill alone, to which the layout
makes no difference. Elsewhere they serve decode steps too: with the embedded model's shapes on an
AMD EPYC (Zen 4), one thread, float32, one row times a row-major matrix streams its weights at
11 GB/s, times a column-major one at 16-24 GB/s, because the matrix-vector kernel then adds columns
instead of reducing rows. Many rows run at 71 GFLOP/s through torch's default (MKL, which holds back
on AMD) and at 101 GFLOP/s through oneDNN.
"""

import functools
from typing import Optional

import torch
from torch import Tensor
import torch.nn.functional as F

from timebill_ros.engine.cpu.build import find_compiler


def lay_out(weight: Tensor) -> Tensor:
    """Return ``weight`` [out, in] with the same values, stored column-major where that is fast."""
    rows, columns = weight.shape
    plain = weight.device.type == 'cpu' and weight.dtype == torch.float32 and not _compiled_steps()
    return weight.t().contiguous().t() if plain and rows >= columns else weight


@functools.lru_cache(maxsize=1)
def _compiled_steps() -> bool:
    """Tell whether this machine can compile decode steps, which read row after row."""
    return find_compiler() is not None


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """Return ``x`` [M, in] @ ``weight`` [out, in].T + ``bias`` [out]."""
    if _ONEDNN and x.shape[0] > 1 and x.dtype == torch.float32 and x.device.type == 'cpu':
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, 'none', [], '')
        return product
    return F.linear(x, weight, bias)


def _probe_onednn() -> bool:
    """Tell whether this build of torch has oneDNN's linear and it computes what it should."""
    x, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    try:
        product = torch.ops.mkldnn._linear_pointwise(x, weight, None, 'none', [], '')
    except (AttributeError, RuntimeError):
        return False
    return bool(torch.equal(product, x @ weight.t()))


_ONEDNN = torch.backends.mkldnn.is_available() and _probe_onednn()
