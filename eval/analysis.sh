#!/usr/bin/env bash
# eval/analysis.sh OUT [DEMO]: the figures and numbers about a head, on the miniature, after scripts/demo.sh.
# DEMO (default runs/demo) has the trained stage 1. OUT/results receives the summaries that docs/results.md quotes.
set -euo pipefail
source "$(dirname "$0")/../scripts/usage.sh"
needs "OUT" "$@"
source "$(dirname "$0")/../scripts/env.sh"
out="$1" demo="${2:-runs/demo}"
mkdir -p "$out/results"

# scenes that neither training nor the demo's evaluation has, of every group, for what is chosen (thresholds)
pool="$out/pool/validation/eval.jsonl"
[ -f "$pool" ] ||
  python -m safevlm.miniature data --out "$out/pool" --risky 4 --clean 3 --per-group 0 \
    --validation-per-group 2400 --validation-seed 4000037
seen="$out/pool/validation/seen.jsonl" # 1,500 of them with seen symbols or none
grep -E '"group": "(harmful_seen|benign|lookalike)"' "$pool" | awk 'NR % 24 < 5' >"$seen"
# a head that has hardly learned anything: the calibration's guarantee must hold for it, too
safevlm train miniature_stage1 --model.path checkpoints/miniature \
  --data.train "[$demo/data/train.jsonl]" --optim.epochs 1 --optim.lr 0.00003 --run.out "$out/hard"

safevlm analyze tsne --model "$demo/stage1" --data "seen=$seen" --out "$out/tsne"
safevlm analyze tsne --model "$demo/stage1" --data "all=$demo/data/eval.jsonl" --out "$out/tsne_all"
safevlm analyze head --model "$demo/stage1" --data "$demo/data/eval.jsonl" --by-group --out "$out/head"
for name in stage1 hard; do
  model="$demo/stage1"
  [ "$name" = stage1 ] || model="$out/hard"
  safevlm analyze calibration --model "$model" --data "pool=$pool" --test "demo=$demo/data/eval.jsonl" \
    --trials 100 --out "$out/calibration_$name"
done
for name in tsne tsne_all head calibration_stage1 calibration_hard; do
  cp "$out/$name/summary.json" "$out/results/$name.json"
done

# where harmful and harmless requests part in the LLM: in words, in images, behind defenses; before and after stage 2
[ -f "$out/matched_pairs/images.jsonl" ] ||
  python -m safevlm.miniature matched-pairs --out "$out/matched_pairs"
for name in stage1 merged; do
  safevlm analyze layers --model "$demo/$name" --data "images=$out/matched_pairs/images.jsonl" \
    --text "$out/matched_pairs/words.jsonl" --defense static-prompt --defense safety-head --defense oracle \
    --out "$out/layers_$name"
  cp "$out/layers_$name/summary.json" "$out/results/layers_$name.json"
done
echo "summaries: $out/results"
