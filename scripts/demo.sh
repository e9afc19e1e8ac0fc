#!/usr/bin/env bash
# The whole path on the miniature: data, stage 1, stage 2, merge, evaluation, report. About ten minutes on two cores.
# DEMO_OUT (default runs/demo) receives report.html, table.md and summary.json.
set -euo pipefail
source "$(dirname "$0")/env.sh"

out="${DEMO_OUT:-runs/demo}"
base=checkpoints/miniature
mkdir -p "$out"

say() { printf '\n== %s\n' "$*"; }
now() { date +%s; }

start=$(now)
say "data: training records without the unseen symbols, and held-out scenes"
python -m safevlm.miniature data --out "$out/data"

say "stage 1: safety tokens, projector and head; the LLM is frozen"
mark=$(now)
safevlm train miniature_stage1 \
  --model.path "$base" --data.train "[$out/data/train.jsonl]" --run.out "$out/stage1"
stage1=$(($(now) - mark))

say "stage 2: a LoRA on the LLM; the safety modules are frozen"
mark=$(now)
safevlm train miniature_stage2 \
  --model.path "$out/stage1" --data.train "[$out/data/train.jsonl]" --run.out "$out/stage2"
[ -f "$out/merged/config.json" ] || safevlm merge "$out/stage2" --out "$out/merged"
stage2=$(($(now) - mark))

say "evaluation: seven groups of requests, six rows"
mark=$(now)
# name | checkpoint | defense | timed against the bare base?
rows=(
  "none|$base|none|timed"
  "static-prompt|$base|static-prompt|"
  "oracle|$base|oracle|"
  "stage1+safety-head|$out/stage1|safety-head|timed"
  "stage2|$out/merged|none|"
  "stage2+safety-head|$out/merged|safety-head|timed"
)
runs=()
for row in "${rows[@]}"; do
  IFS='|' read -r name model defense timed <<<"$row"
  printf -- '-- %s\n' "$name"
  where=(--data "$out/data" --model "$model" --defense "$defense" --out "$out/eval/$name")
  safevlm eval ask "${where[@]}" --batch-size 100
  safevlm eval judge --out "$out/eval/$name"
  [ -z "$timed" ] || safevlm bench guard "${where[@]}" --against "$base" --n 40
  runs+=(--run "$name=$out/eval/$name")
done
printf '{"total": %d, "stage1": %d, "stage2": %d, "eval": %d}\n' \
  $(($(now) - start)) "$stage1" "$stage2" $(($(now) - mark)) >"$out/seconds.json"

safevlm eval report "${runs[@]}" --head "stage1+safety-head" --seconds "$out/seconds.json" \
  --title "SafeVLM on the miniature" --out "$out"
printf '\nreport:  %s\nchat:    safevlm chat --model %s --image %s\n' \
  "$out/report.html" "$out/merged" "$out/data/eval/harmful_seen-0000.png"
