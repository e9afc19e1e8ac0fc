#!/usr/bin/env bash
# eval/pictograms.sh PARTS LLM OUT: the second world from its parts to a table: data, base, both stages, rows of a split.
# Reckoned, not measured: a quarter of an hour on one card, most of a day on two cores.
#   SPLIT     validation (default), or test, which is asked once, last
#   SEED      of data, base and training (default 256)
#   FLAGS     further ones of `safevlm pictograms build`, such as --size card
set -euo pipefail
source "$(dirname "$0")/../scripts/usage.sh"
needs "PARTS LLM OUT" "$@"
source "$(dirname "$0")/../scripts/env.sh"
parts="$1" llm="$2" out="$3" split="${SPLIT:-validation}" seed="${SEED:-256}"
read -ra flags <<<"${FLAGS:-}"
mkdir -p "$out"
build=(safevlm pictograms build --parts "$parts" --llm "$llm" --out "$out/built" --seed "$seed" "${flags[@]}")

[ -f "$out/data/eval.jsonl" ] || safevlm pictograms data --parts "$parts" --out "$out/data" --train-seed "$seed"
# tower and LLM learn side by side: neither knows of the other
"${build[@]}" --only clip &
"${build[@]}" --only aligned
wait $!
"${build[@]}" --data "$out/data"
where="$out/data" base="$out/built/base"
[ "$split" = test ] || where="$out/data/$split"

train=(--data.train "[$out/data/train.jsonl]" --run.seed "$seed")
safevlm train pictograms_stage1 --model.path "$base" --run.out "$out/stage1" "${train[@]}"
safevlm train pictograms_stage2 --model.path "$out/stage1/final" --run.out "$out/stage2" "${train[@]}"
[ -f "$out/merged/config.json" ] || safevlm merge "$out/stage2" --out "$out/merged"

rows=(
  "none|$base|none"
  "static-prompt|$base|static-prompt"
  "oracle|$base|oracle"
  "stage1+safety-head|$out/stage1|safety-head"
  "stage2|$out/merged|none"
  "stage2+safety-head|$out/merged|safety-head"
)
runs=()
for row in "${rows[@]}"; do
  IFS='|' read -r name model defense <<<"$row"
  place="$out/eval_$split/$name"
  safevlm eval ask --suite pictograms --data "$where" --model "$model" --defense "$defense" --out "$place"
  safevlm eval judge --out "$place" || [ $? -eq 1 ] # replies that no rule of the world reads stay unscored
  runs+=(--run "$name=$place")
done
safevlm eval report "${runs[@]}" --head "stage1+safety-head" --title "Pictograms, $split" --out "$out/report_$split"
