# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Benchmarks and experiments: they drive the same node, planner and engine that users run."""
