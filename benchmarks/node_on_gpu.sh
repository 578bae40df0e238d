#!/bin/bash
# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
#
# node_on_gpu.sh OUT: what docs/node.md shows of the whole node on a GPU. Needs timebill on the path (ros_on_gpu.sh
# puts it there on a machine without ROS). Every part has a time limit of its own; results and logs go to OUT.
set -u
mkdir -p "$1"
out=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)

part() {  # NAME SECONDS COMMAND...: standard output into NAME.txt, the log into NAME.log
  timeout --kill-after=10 "$2" "${@:3}" >"$out/$1.txt" 2>"$out/$1.log"
  echo "$1: exit status $?, $SECONDS s since the start"
}

{
  nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
  "${TIMEBILL_ENGINE_PYTHON:-python3}" -c 'import sys, torch, transformers
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, transformers {transformers.__version__}")'
} >"$out/machine.txt"
part demo 100 timebill demo --device cuda
part bench_node 100 timebill bench node --device cuda --queries 60 --starts 1
part clients 60 python3 "$here/node_clients.py" --device cuda --seconds 25
