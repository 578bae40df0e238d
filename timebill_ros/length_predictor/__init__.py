# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""How long the answer will be: predictors of the response length, and their training."""
