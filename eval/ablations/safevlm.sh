#!/usr/bin/env bash
# eval/ablations/safevlm.sh MODEL DATA OUT [judge flags …]: SafeVLM's ablations from one table: every row is trained, asked
# and judged; OUT/ablations.json and OUT/ablations.md receive them beside each other. Started again, it goes on.
#   TABLE      rows (default eval/ablations/miniature.yaml; eval/ablations/llava7b.yaml)
#   SEEDS      seeds of training, one after the other (default 256)
#   SUITE      what is asked (default miniature), of EVAL_DATA (default DATA)
#   LAUNCHER   none (default), deepspeed, torchrun; GPUS, NODES, …: see scripts/launch.sh
#   LIMIT, JUDGE, POLICY, BATCH_SIZE, PARTIAL, DRY_RUN: see eval/evaluate.sh
set -euo pipefail
source "$(dirname "$0")/../../scripts/usage.sh"
needs "MODEL DATA OUT" "$@"
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/../../scripts/launch.sh"
source "$here/../evaluate.sh"
model="$1" data="$2" out="$3"
shift 3
table="${TABLE:-$here/miniature.yaml}" suite="${SUITE:-miniature}" asked="${EVAL_DATA:-$data}"
export LAUNCHER="${LAUNCHER:-none}"

# shellcheck disable=SC2086
ablations() { # plan | report
  safevlm eval ablations "$1" "$table" --model "$model" --data "$data" --out "$out" --suite "$suite" --seeds ${SEEDS:-256}
}

plan="$(ablations plan)"
found="$(suites_in "$asked" "$suite")"
IFS=$'\t' read -r _ judge _ state why <<<"$found"
[ "$state" = there ] || { echo "$asked: suite $suite: $why" >&2; exit 1; }
while IFS=$'\t' read -ra step <&3; do
  place="${step[0]}" recipe="${step[1]}" base="${step[2]}" records="${step[3]}" checkpoint="${step[4]}" defense="${step[5]}"
  printf '\n== %s\n' "$place"
  if [ "$recipe" != - ] && [ ! -f "$checkpoint/final/run.json" ]; then
    (launch "$recipe" "$base" "$records" "$checkpoint" "${step[@]:6}")
  fi
  DEFENSES="$defense" evaluate "$suite" "$judge" "$checkpoint" "$asked" "$place" "$@"
done 3<<<"$plan"
[ -n "${DRY_RUN:-}" ] || step ablations report
finish_evaluation
