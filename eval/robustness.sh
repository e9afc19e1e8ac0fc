#!/usr/bin/env bash
# eval/robustness.sh DATA OUT NAME=MODEL=DEFENSE …: attacks guarded models, and puts them beside each other with their
# numbers on images that nobody touched. Every NAME gets OUT/NAME/{attacks,asked}; OUT/compared has the table and the
# curves, OUT/clean the clean numbers, OUT/transfer what images made for the first NAME do to the others.
#   eval/robustness.sh runs/demo/data runs/robust head=runs/demo/stage1=safety-head stage2=runs/demo/merged=safety-head
#
#   ANSWERS        run of the unguarded base, whose replies the attacker wants (default: each model without its defense)
#   ATTACKS        default "geometry,light,words,linf4,linf8,linf16,sanity"
#   TRANSFERRED    default "pgd:4,pgd:8"; "-": none
#   LIMIT          harmful requests with images, the groups in turn (default 240)
#   STEPS, STARTS, QUERIES   of the attacks (default 40, 2, 200)
#   SUITE          default miniature
#   BATCH_SIZE, DRY_RUN: see eval/evaluate.sh
#
# Steps that were done are not done again.
set -euo pipefail
source "$(dirname "$0")/../scripts/usage.sh"
needs "DATA OUT NAME=MODEL=DEFENSE" "$@"
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/evaluate.sh"
data="$1" out="$2"
shift 2
asked=(--suite "${SUITE:-miniature}" --data "$data")
effort=(--steps "${STEPS:-40}" --starts "${STARTS:-2}" --queries "${QUERIES:-200}" --limit "${LIMIT:-240}")
compared=() clean=() first=""
for target in "$@"; do
  IFS='=' read -r name model defense <<<"$target"
  [ -n "$name" ] && [ -n "$model" ] && [ -n "$defense" ] || { echo "$target is not NAME=MODEL=DEFENSE" >&2 && exit 2; }
  guarded=("${asked[@]}" --model "$model" --defense "$defense")
  step safevlm eval attack "${guarded[@]}" "${effort[@]}" ${ANSWERS:+--answers "$ANSWERS"} \
    --attack "${ATTACKS:-geometry,light,words,linf4,linf8,linf16,sanity}" --out "$out/$name/attacks"
  if [ -n "$first" ] && [ "${TRANSFERRED:-}" != - ]; then
    step safevlm eval attack "${guarded[@]}" "${effort[@]}" ${ANSWERS:+--answers "$ANSWERS"} \
      --attack "${TRANSFERRED:-pgd:4,pgd:8}" --images-of "$out/$first/attacks" --out "$out/$name/transferred"
    compared+=(--run "$name, images made for $first=$out/$name/transferred")
  fi
  first="${first:-$name}"
  step safevlm eval ask "${guarded[@]}" --batch-size "${BATCH_SIZE:-64}" --out "$out/$name/asked"
  step safevlm eval judge --out "$out/$name/asked"
  compared+=(--run "$name=$out/$name/attacks") clean+=(--run "$name=$out/$name/asked")
done
step safevlm eval robustness "${compared[@]}" --out "$out/compared"
step safevlm eval report "${clean[@]}" --out "$out/clean"
finish_evaluation
