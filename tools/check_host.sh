#!/bin/sh
# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
#
# check_host.sh PYTHON: is everything here that `make` needs and cannot install itself?
python=$1
missing=0

complain() {
  echo "missing: $1" >&2
  echo "   mend: $2" >&2
  missing=1
}

for tool in gcc g++; do
  command -v "$tool" >/dev/null || complain "$tool" "sudo apt-get install gcc g++"
done

if ! command -v "$python" >/dev/null; then
  complain "$python" "install Python 3.10-3.13, or name one: make PYTHON=/path/to/python3"
elif ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
  complain "Python 3.10-3.13 ($python is $("$python" -V))" "name another: make PYTHON=/path/to/python3.12"
else
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    complain "venv of $python" "sudo apt-get install python3-venv"
  "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    complain "headers of $python" "sudo apt-get install python3-dev"
fi
exit "$missing"
