#!/usr/bin/env bash
# eval/ablations/security_tensor.sh MODEL PAIRS DATA OUT: where virtual tokens stand, and what holds benign answers in place:
# a row each for the recipe, another position, cross-entropy instead of KL, and the recipe's values shuffled.
#
#   A choice is made with DATA/validation as DATA, the table with DATA.
#   RECIPE    default miniature_security_tensor_textual
#   STEPS     updates of each (default 600)
#   SUITE, BATCH_SIZE
set -euo pipefail
source "$(dirname "$0")/../../scripts/usage.sh"
needs "MODEL PAIRS DATA OUT" "$@"
model="$1" pairs="$2" data="$3" out="$4"
recipe="${RECIPE:-miniature_security_tensor_textual}" suite="${SUITE:-miniature}"
name=security-tensor:textual runs=()

# measured NAME DEFENSE
measured() {
  safevlm eval ask --suite "$suite" --data "$data" --model "$model" --defense "$2" --out "$out/eval/$1" \
    --batch-size "${BATCH_SIZE:-64}"
  safevlm eval judge --out "$out/eval/$1"
  runs+=(--run "$1=$out/eval/$1")
}

# row NAME [flags …]
row() {
  [ -f "$out/$1/final/run.json" ] ||
    safevlm train "$recipe" --model.path "$model" --data.train "[$pairs]" --run.out "$out/$1" \
      --optim.max_steps "${STEPS:-600}" "${@:2}"
  measured "$1" "$name=$out/$1/final"
}

measured none none
row start+kl
row after_image+kl --tensor.position after_image
row start+ce --tensor.benign ce
[ -d "$out/shuffled" ] ||
  safevlm shuffle-tensor "$out/start+kl/final/security_tensor_textual.safetensors" --out "$out/shuffled"
measured shuffled "$name=$out/shuffled"
safevlm eval report "${runs[@]}" --title "Textual security tensors" --out "$out"
