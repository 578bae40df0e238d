# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Whose turn: the scheduler, the engine process, and the messages between the processes."""
