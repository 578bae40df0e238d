# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""Seconds: the timing laws, their fit to measurements, and the estimates made with them."""
