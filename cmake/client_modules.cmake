# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0

# The modules behind timebill_ros.client: neither torch nor the server's code. A test imports the client from
# an installation of nothing else.
set(client_modules
  __init__.py
  query.py
  client.py
  nodes/__init__.py
  nodes/answer.py
  nodes/conversions.py
  nodes/deadline_timer.py
  nodes/event_inbox.py
  nodes/guarded.py
  nodes/qos.py
  nodes/quiet_client.py)
