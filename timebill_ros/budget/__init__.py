# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""What a time budget buys: eviction ratio, cap, feasibility and admission."""
