# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Decode steps on CPUs: one call into compiled code a step, weights in as few bits as they need."""
