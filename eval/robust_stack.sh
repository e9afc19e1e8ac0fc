#!/usr/bin/env bash
# eval/robust_stack.sh BASE RECORDS OUT: the stack that docs/robustness.md measures. A vision tower that withstands changed
# images (OUT/tower), a head on it that has seen images smaller, turned, in parts and beside others (OUT/head), stage 2
# on images changed likewise (OUT/stage2), merged (OUT/merged). About twenty minutes on two cores for the miniature.
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
any="scale:35, crop:80, parts, collage, mosaic, rotate:30, contrast:20, invert, mirror, jpeg, blur, noise, alpha:20"
answered="scale:35, rotate:30, contrast:20, jpeg, blur, noise, alpha:20" # what leaves answers true
step safevlm train miniature_robust_tower --model.path "$base" --data.train "$records" --run.out "$out/tower" "${seed[@]}"
step safevlm train miniature_stage1_robust --model.path "$out/tower/final" --data.train "$records" \
  --adversarial.epsilon 0 --data.augment "[$any]" \
  --data.augment_share 0.8 --optim.epochs 30 --run.out "$out/head" "${seed[@]}"
step safevlm train miniature_stage2 --model.path "$out/head/final" --data.train "$records" \
  --data.augment "[$answered]" --data.augment_share 0.6 --optim.epochs 3 --run.out "$out/stage2" "${seed[@]}"
[ -f "$out/merged/config.json" ] || step safevlm merge "$out/stage2" --out "$out/merged"
