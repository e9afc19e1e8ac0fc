#!/usr/bin/env bash
# eval/audit.sh OUT [DEMO]: what an audit finds among 20,000 images of which 2 % are risky, and what training on the
# filtered set changes; on the miniature, after scripts/demo.sh. OUT/results receives the numbers that docs/results.md quotes.
set -euo pipefail
source "$(dirname "$0")/../scripts/usage.sh"
needs "OUT" "$@"
source "$(dirname "$0")/../scripts/env.sh"
out="$1" demo="${2:-runs/demo}"
mkdir -p "$out/results"

contaminate() { # NAME N RISKY [flags]
  [ -f "$out/$1/truth.jsonl" ] || python -m safevlm.miniature contaminate --out "$out/$1" --n "$2" --risky "$3" "${@:4}"
}
audit() { # NAME [flags]: audits the contaminated images
  safevlm audit "$out/$1/images" --model "$demo/stage1" --threads 1 "${@:2}"
}

contaminate set20k 20000 0.02
audit set20k --out "$out/audit20k" --calibration "$out/set20k/calibration/truth.jsonl" --bench
python -m safevlm.miniature audit-truth --truth "$out/set20k/truth.jsonl" --audit "$out/audit20k" \
  --out "$out/results/audit.json"
cp "$out/audit20k/bench.json" "$out/results/audit_speed.json"

# A model that refuses by itself is tuned further on a careless public set, whose records help whatever their image
# shows: the whole set, and what the audit leaves of it.
contaminate public 4000 0.05 --split validation # trained on below, and measured on the test
audit public --out "$out/audit_public"
runs=()
for name in before unfiltered filtered; do
  model="$demo/merged"
  if [ "$name" != before ]; then
    model="$out/$name"
    exclude="[]"
    [ "$name" = unfiltered ] || exclude="[$out/audit_public/exclude.txt]"
    safevlm train miniature_stage2 --model.path "$demo/merged" --optim.epochs 1 \
      --data.train "[$out/public/public.jsonl]" --data.exclude "$exclude" --run.out "$out/$name"
  fi
  for defense in none safety-head; do
    row="$name"
    [ "$defense" = none ] || row="$name+$defense"
    safevlm eval ask --data "$demo/data" --model "$model" --defense "$defense" --out "$out/eval/$row" --batch-size 100
    safevlm eval judge --out "$out/eval/$row"
    runs+=(--run "$row=$out/eval/$row")
  done
done
safevlm eval report "${runs[@]}" --title "Training on an audited set" --out "$out/eval"
cp "$out/eval/summary.json" "$out/results/filtered.json"
cp "$out/eval/table.md" "$out/results/filtered.md"
echo "numbers: $out/results"
