# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The decode step on NVIDIA GPUs: own kernels, compiled at first use, replayed as a CUDA graph."""
