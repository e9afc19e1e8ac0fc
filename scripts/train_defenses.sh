#!/usr/bin/env bash
# scripts/train_defenses.sh MODEL DATA OUT: everything that is learned, for one folder of SEEDS in eval/compare_defenses.sh.
# MODEL is a bare LLaVA, DATA its labelled records. OUT gets stage1, merged (both stages), refusal_lora_merged, pairs,
# security_tensor_textual, security_tensor_visual, and of both a control with shuffled values. What is there is not made again.
#
#   SEED      default 256
#   RECIPES   beginning of the recipes' names (default miniature; llava7b, llava13b)
#   LAUNCHER, GPUS, NODES: see scripts/launch.sh; here LAUNCHER is none unless set
#   MALICIOUS, CONTRASTIVE, BENIGN: records of each part for the tensors (default 1200, 1200, 800)
#   DRY_RUN=1 print only
# Settings are chosen with the validation split beside the records, never with what the final table asks.
set -euo pipefail
source "$(dirname "$0")/usage.sh"
needs "MODEL DATA OUT" "$@"
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/launch.sh"
model="$1" data="$2" out="$3"
recipes="${RECIPES:-miniature}" seed="${SEED:-256}"
export LAUNCHER="${LAUNCHER:-none}"

step() {
  printf '%q ' "$@"
  echo
  [ -n "${DRY_RUN:-}" ] || "$@"
}

# learn NAME FROM RECORDS [flags …]: a run in OUT/NAME
learn() {
  local name="$1" from="$2" records="$3"
  shift 3
  [ -f "$out/$name/final/run.json" ] ||
    (launch "${recipes}_$name" "$from" "$records" "$out/$name" --run.seed "$seed" "$@")
}

# merged NAME INTO
merged() {
  [ -f "$out/$2/config.json" ] || step safevlm merge "$out/$1" --out "$out/$2"
}

learn stage1 "$model" "$data"
learn stage2 "$out/stage1" "$data"
merged stage2 merged
learn refusal_lora "$model" "$data"
merged refusal_lora refusal_lora_merged
[ -f "$out/pairs/pairs.json" ] ||
  step safevlm pair "$data" --model "$model" --out "$out/pairs" --seed "$seed" \
    --malicious "${MALICIOUS:-1200}" --contrastive "${CONTRASTIVE:-1200}" --benign "${BENIGN:-800}"
learn security_tensor_textual "$model" "$out/pairs/pairs.jsonl"
learn security_tensor_visual "$model" "$out/pairs/pairs.jsonl"
for kind in textual visual; do
  [ -d "$out/shuffled_$kind" ] ||
    step safevlm shuffle-tensor "$out/security_tensor_$kind/final/security_tensor_$kind.safetensors" \
      --out "$out/shuffled_$kind" --seed "$seed"
done
