#!/usr/bin/env bash
# eval/robust_stack.sh BASE RECORDS OUT: the stack that docs/robustness.md measures. A vision tower that was attacked around
# images as they are, small, turned and faint (OUT/tower, recipe miniature_robust_tower), a head on it that was attacked
# around images smaller, turned, in parts and beside others (OUT/head, miniature_stage1_robust), stage 2 on images changed
# likewise (OUT/stage2, miniature_stage2_robust), merged (OUT/merged). About forty minutes on one core for the miniature.
#   eval/robust_stack.sh checkpoints/miniature runs/demo/data/train.jsonl runs/robust
#
#   SEED       of all three runs (default 256)
#   DRY_RUN=1  print only
#
# Steps that were done are not done again.
set -euo pipefail
source "$(dirname "$0")/../scripts/usage.sh"
needs "BASE RECORDS OUT" "$@"
source "$(dirname "${BASH_SOURCE[0]}")/evaluate.sh"
base="$1" records="[$2]" out="$3"
seed=(--run.seed "${SEED:-256}")
step safevlm train miniature_robust_tower --model.path "$base" --data.train "$records" --run.out "$out/tower" "${seed[@]}"
step safevlm train miniature_stage1_robust --model.path "$out/tower/final" --data.train "$records" --run.out "$out/head" "${seed[@]}"
step safevlm train miniature_stage2_robust --model.path "$out/head/final" --data.train "$records" --run.out "$out/stage2" "${seed[@]}"
[ -f "$out/merged/config.json" ] || step safevlm merge "$out/stage2" --out "$out/merged"
