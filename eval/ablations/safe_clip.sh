#!/usr/bin/env bash
# eval/ablations/safe_clip.sh MODEL CLIP DATA OUT: SafeCLIP's choices, one by one: which CLS and layernorm, τ, number of
# templates (what is flagged); feature, policy and place of the hint (what the model then says). All in OUT/safe_clip.json.
#
#   CONCEPTS   YAML (default: the miniature's); LABELLED: labelled images (default DATA/eval.jsonl)
#   A choice is made with DATA/validation as DATA, the table with DATA.
#   SUITE      what is asked (default miniature); LIMIT: only so many requests; BATCH_SIZE (default 100)
#   BASE_ONLY=1  what is flagged, without asking the model anything
set -euo pipefail
source "$(dirname "$0")/../../scripts/usage.sh"
needs "MODEL CLIP DATA OUT" "$@"
source "$(dirname "$0")/../../scripts/env.sh"
model="$1" clip="$2" data="$3" out="$4"
concepts="${CONCEPTS:-safevlm/miniature/concepts.yaml}"
mkdir -p "$out"

banks=()
for count in 1 3 5; do # so many templates of each concept
  safevlm embed "$concepts" --templates "$count" --clip "$clip" --out "$out/templates_$count.safetensors"
  banks+=(--bank "templates_$count=$out/templates_$count.safetensors")
done

summary=()
if [ -z "${BASE_ONLY:-}" ]; then
  echo 'levels: {careful: refuse, may_refuse: refuse, must_refuse: refuse}' >"$out/refuse.yaml"
  echo 'place: before' >"$out/before.yaml"
  # name | feature | policy
  rows=(
    "pooled, hint|pooled|" "pooled, refuse|pooled|refuse" "pooled, hint before the question|pooled|before"
    "paper, hint|paper|"
  )
  runs=()
  for row in "${rows[@]}"; do
    IFS='|' read -r name feature policy <<<"$row"
    run="$out/eval/$feature-${policy:-hint}"
    safevlm eval ask --suite "${SUITE:-miniature}" --data "$data" --model "$model" \
      --defense "safe-clip:$feature=$out/templates_5.safetensors" ${policy:+--policy "$out/$policy.yaml"} --out "$run" \
      --batch-size "${BATCH_SIZE:-100}" ${LIMIT:+--limit "$LIMIT"}
    safevlm eval judge --out "$run"
    runs+=(--run "$name=$run")
  done
  safevlm eval report "${runs[@]}" --title "SafeCLIP" --out "$out"
  summary=(--summary "$out/summary.json")
fi
safevlm analyze safe-clip --model "$model" "${banks[@]}" --data "${LABELLED:-$data/eval.jsonl}" \
  "${summary[@]}" --out "$out/safe_clip.json"
