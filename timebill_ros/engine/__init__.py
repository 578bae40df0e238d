# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""The model: loading, cache, eviction, decode step, and one query's way through them."""
