#!/usr/bin/env bash
# eval/second_base.sh OUT: a small base of another family, its stage 1 and the mixer's table; about half an hour on one
# core. OUT/base.json says what made the base and what it can, OUT/summary.json and OUT/table.md hold the table.
#   FAMILY    (default idefics3)
#   BASE      a base that is there already (default OUT/base, made if need be)
set -euo pipefail
source "$(dirname "$0")/../scripts/usage.sh"
needs "OUT" "$@"
source "$(dirname "$0")/../scripts/env.sh"
out="$1" base="${BASE:-$1/base}"
mkdir -p "$out"

[ -f "$base/run.json" ] || python -m safevlm.miniature build --family "${FAMILY:-idefics3}" --out "$base"
cp "$base/run.json" "$out/base.json"
[ -f "$out/data/eval.jsonl" ] || python -m safevlm.miniature data --out "$out/data"
safevlm train miniature_family_stage1 \
  --model.path "$base" --data.train "[$out/data/train.jsonl]" --run.out "$out/stage1"

runs=()
for row in "none|$base|none" "stage1+safety-head|$out/stage1|safety-head"; do
  IFS='|' read -r name model defense <<<"$row"
  safevlm eval ask --data "$out/data" --model "$model" --defense "$defense" --out "$out/eval/$name" --batch-size 100
  safevlm eval judge --out "$out/eval/$name"
  runs+=(--run "$name=$out/eval/$name")
done
safevlm eval report "${runs[@]}" --head "stage1+safety-head" --title "A base of another family" --out "$out"
