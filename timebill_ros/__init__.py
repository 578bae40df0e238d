# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Answers from a language model within a hard time budget (TimeBill, arXiv 2512.21859)."""

__version__ = '0.1.0'
