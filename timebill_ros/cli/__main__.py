# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m timebill_ros.cli``."""

import sys

from timebill_ros.cli import main

sys.exit(main())
