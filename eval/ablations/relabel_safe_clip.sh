#!/usr/bin/env bash
# eval/ablations/relabel_safe_clip.sh OUT [DEMO]: SafeCLIP's correction in fine-tuning, on the miniature, after scripts/demo.sh.
# The careless public set of eval/audit.sh (3,960 records that help whatever their image shows, 5 % of them risky)
# tunes the merged model once as it is, and once with `data.relabel`. OUT/summary.json has both, and the model before.
set -euo pipefail
source "$(dirname "$0")/../../scripts/usage.sh"
needs "OUT" "$@"
source "$(dirname "$0")/../../scripts/env.sh"
out="$1" demo="${2:-runs/demo}"
bank="${BANK:-checkpoints/miniature/defenses/safe_clip.safetensors}"

[ -f "$out/public/truth.jsonl" ] || python -m safevlm.miniature contaminate --out "$out/public" --n 4000 --risky 0.05 --split validation
runs=()
for name in ${ROWS:-before all relabelled}; do
  model="$demo/merged"
  if [ "$name" != before ]; then
    model="$out/$name"
    relabel=""
    [ "$name" = all ] || relabel="$bank"
    safevlm train miniature_stage2 --model.path "$demo/merged" --optim.epochs 1 \
      --data.train "[$out/public/public.jsonl]" --data.relabel "$relabel" --run.out "$model"
  fi
  safevlm eval ask --data "$demo/data" --model "$model" --defense none --out "$out/eval/$name" --batch-size 100
  safevlm eval judge --out "$out/eval/$name"
  runs+=(--run "$name=$out/eval/$name")
done
safevlm eval report "${runs[@]}" --title "Fine-tuning on a corrected set" --out "$out"
