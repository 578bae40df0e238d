#!/bin/bash
# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
#
# node_on_gpu.sh OUT [PART...]: what docs/node.md shows of the whole node on a GPU: demo, bench_node, clients (all of
# them by default). Needs timebill on the path; ros_on_gpu.sh puts it there on a machine without ROS. Every part has a
# time limit of its own; results and logs go to OUT.
set -u
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
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
[ $# -gt 0 ] || set -- demo bench_node clients
for name in "$@"; do
  case $name in
    demo) part demo 75 timebill demo --device cuda ;;
    bench_node) part bench_node 100 timebill bench node --device cuda --queries 60 --starts 1 --out "$out/node-h200.json" ;;
    clients) part clients 60 python3 "$here/node_clients.py" --device cuda --seconds 25 --out "$out/clients-h200.json" ;;
    *) echo "node_on_gpu.sh: there is no part $name" >&2; exit 2 ;;
  esac
done
