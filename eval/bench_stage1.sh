#!/usr/bin/env bash
# eval/bench_stage1.sh OUT [STEPS]: head-only stage 1 beside the full one, on the miniature, in one run.
# The same records and the same number of updates; head-only runs a second time at the end, which shows how steady the
# machine was. OUT/bench_stage1.json receives samples per second and the head's accuracy on held-out scenes.
set -euo pipefail
source "$(dirname "$0")/../scripts/usage.sh"
needs "OUT" "$@"
source "$(dirname "$0")/../scripts/env.sh"
out="$1" steps="${2:-450}"

[ -f "$out/data/train.jsonl" ] || python -m safevlm.miniature data --out "$out/data"
for row in head_only:miniature_stage1 full:miniature_stage1_lm_tokens head_only_again:miniature_stage1; do
  name="${row%%:*}"
  safevlm train "${row#*:}" --model.path checkpoints/miniature --optim.max_steps "$steps" \
    --data.train "[$out/data/train.jsonl]" --run.out "$out/$name" --run.resume false --run.save_steps 100000
  safevlm analyze head --model "$out/$name" --data "held-out=$out/data/eval.jsonl" --out "$out/$name/analysis"
done

safevlm bench stage1 "$out" --rows head_only full head_only_again --fast head_only --slow full \
  --made-by "bash eval/bench_stage1.sh OUT $steps"
echo "$out/bench_stage1.json"
