#!/usr/bin/env bash
# eval/compare_defenses.sh MODEL DATA OUT [judge flags …]: every defense on the same questions, as one table with paired
# tests and a figure in OUT (grid.md, grid.json, grid.png). MODEL is the bare one that all are timed against.
#   SEEDS="runs/a runs/b" eval/compare_defenses.sh checkpoints/miniature runs/a/data runs/grid
#
#   SUITE          default miniature
#   ROWS           table of rows (default eval/protocols/SUITE.tsv, where there is none eval/protocols/default.tsv)
#   DEFENSES       only these rows, by name
#   SEEDS          folders of trainings, for rows with {seed}; each row is done once per folder
#   PERTURBATIONS  changes of images (default "jpeg blur resize noise crop"; "-": none)
#   CHANGED_GROUPS groups asked with changed images (default: as the table of rows says, else all)
#   CHANGED_LIMIT  only so many requests with changed images (default: LIMIT)
#   TIMED          requests that are timed (default 40)
#   LIMIT, JUDGE, GPUS, BATCH_SIZE, PARTIAL, DRY_RUN: see eval/evaluate.sh
#
# Steps that were done are not done again. A row that breaks is told, in OUT/rows.tsv too, and the rest goes on.
set -euo pipefail
source "$(dirname "$0")/../scripts/usage.sh"
needs "MODEL DATA OUT" "$@"
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/evaluate.sh"
model="$1" data="$2" out="$3"
shift 3
suite="${SUITE:-miniature}" only=()
rows="${ROWS:-$here/protocols/$suite.tsv}"
[ -n "${ROWS:-}" ] || [ -f "$rows" ] || rows="$here/protocols/default.tsv"
CHANGED_GROUPS="${CHANGED_GROUPS-$(sed -n 's/^# changed groups: //p' "$rows")}"
for group in ${CHANGED_GROUPS:-}; do only+=(--group "$group"); done
changes="${PERTURBATIONS-jpeg blur resize noise crop}"
safevlm=(safevlm)
[ "${GPUS:-1}" -eq 1 ] || safevlm=(torchrun --nproc_per_node "$GPUS" --module safevlm)

# attack FOLDER MODEL DEFENSE POLICY-FILE [ask flags …]
attack() {
  local run="$1" asked=(--suite "$suite" --data "$data" --model "$2" --defense "$3" ${4:+--policy "$4"})
  shift 4
  step "${safevlm[@]}" eval ask "${asked[@]}" --out "$run" --batch-size "${BATCH_SIZE:-16}" \
    ${LIMIT:+--limit "$LIMIT"} ${PARTIAL:+--partial} "$@"
  [ "$run/scores.jsonl" -nt "$run/replies.jsonl" ] ||
    step safevlm eval judge --out "$run" ${JUDGE:+--judge "$JUDGE"} ${judge_flags[@]+"${judge_flags[@]}"}
}
judge_flags=("$@")

# trial FOLDER MODEL DEFENSE POLICY-FILE TIMED
trial() {
  local change
  attack "$1/clean" "$2" "$3" "$4"
  for change in ${changes#-}; do
    LIMIT="${CHANGED_LIMIT:-${LIMIT:-}}" attack "$1/${change/:/-}" "$2" "$3" "$4" --perturb "$change" --images "$out/images" ${only[@]+"${only[@]}"}
  done
  [ "$5" != timed ] || [ -f "$1/clean/overhead.json" ] ||
    step safevlm bench guard --suite "$suite" --data "$data" --model "$2" --defense "$3" ${4:+--policy "$4"} \
      --against "$model" --n "${TIMED:-40}" --out "$1/clean" ${PARTIAL:+--partial}
}

failed=0 skipped=0
# note ROW SEED STATUS WHY
note() {
  printf '%s (%s): %s%s\n' "$1" "$2" "$3" "${4:+: $4}"
  [ "$3" != skipped ] || skipped=$((skipped + 1))
  [ "$3" = ran ] || [ "$3" = skipped ] || failed=$((failed + 1))
  [ -n "${DRY_RUN:-}" ] || printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >>"$out/rows.tsv"
}

# filled TEXT SEED
filled() {
  local text="${1//\{model\}/$model}"
  printf '%s' "${text//\{seed\}/$2}"
}

# row NAME SEED-NAME SEED MODEL DEFENSE POLICY TIMED NEEDS
row() {
  local name="$1" seed="$2" asked defense policy="${6#-}" need log="$out/logs/$1-$2.log" status=0
  asked="$(filled "$4" "$3")" defense="$(filled "$5" "$3")"
  [ "$policy" != refuse ] || policy="$here/protocols/refuse.yaml"
  for need in $(filled "${8//,/ }" "$3") "$asked"; do
    if [ "$need" != - ] && [ -z "${DRY_RUN:-}" ] && [ ! -e "$need" ] && [[ "$need" != http* ]]; then
      note "$name" "$seed" skipped "$need is missing"
      return
    fi
  done
  printf '\n== %s (%s)\n' "$name" "$seed"
  [ -n "${DRY_RUN:-}" ] || mkdir -p "$out/logs"
  set +e
  (trial "$out/runs/$name/$seed" "$asked" "$defense" "$policy" "$7" && finish_evaluation) 2>&1 |
    if [ -n "${DRY_RUN:-}" ]; then cat; else tee "$log"; fi
  status=${PIPESTATUS[0]}
  set -e
  case "$status" in
    0) note "$name" "$seed" ran "" ;;
    1) note "$name" "$seed" ran "with findings; see $log" && findings=1 ;;
    *) note "$name" "$seed" failed "$(grep -a '^error: ' "$log" | tail -n 1 | tr '\t' ' ' | cut -c 8-)" ;;
  esac
}

findings=0
[ -n "${DRY_RUN:-}" ] || mkdir -p "$out"
names="$(grep -v '^#' "$rows" | cut -f 1)"
for chosen in ${DEFENSES:-}; do
  grep -qxF -- "$chosen" <<<"$names" || { echo "DEFENSES: $rows has no row $chosen; it has" $names >&2 && exit 2; }
done
while IFS=$'\t' read -r name asked defense policy timed needs <&3; do
  case "$name" in '#'* | '') continue ;; esac
  [ -z "${DEFENSES:-}" ] || [[ " $DEFENSES " == *" $name "* ]] || continue
  if [[ "$asked$defense$needs" != *'{seed}'* ]]; then
    row "$name" once "" "$asked" "$defense" "$policy" "$timed" "$needs"
  elif [ -z "${SEEDS:-}" ]; then
    note "$name" - skipped "needs a training: SEEDS=DIR …"
  else
    for seed in $SEEDS; do
      seed="${seed%/}"
      row "$name" "${seed//\//_}" "$seed" "$asked" "$defense" "$policy" "$timed" "$needs"
    done
  fi
done 3<"$rows"

echo
step safevlm eval grid --out "$out"
echo "$skipped skipped, $failed failed; see $out/rows.tsv"
[ "$failed" -eq 0 ] && [ "$findings" -eq 0 ]
