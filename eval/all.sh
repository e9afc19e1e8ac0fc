#!/usr/bin/env bash
# eval/all.sh MODEL DATA OUT [judge flags …]: every suite in DATA, a folder of suites, for MODEL behind each defense.
# A suite that is absent is skipped, and said so; one that fails does not stop the others. Each suite has its own judge;
# the flags go to those with a model.
# SUITES (default: all but the miniature); the other variables: see eval/evaluate.sh.
set -euo pipefail
source "$(dirname "$0")/../scripts/usage.sh"
needs "MODEL DATA OUT" "$@"
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/evaluate.sh"
model="$1" data="$2" out="$3"
shift 3

# shellcheck disable=SC2086
table="$(suites_in "$data" ${SUITES:-})"
evaluated=() skipped=() failed=()
while IFS=$'\t' read -r suite judge kind state why <&3; do
  case "$state" in
    absent)
      skipped+=("$suite: $why")
      continue ;;
    error)
      failed+=("$suite: cannot be read: $why")
      continue ;;
  esac
  flags=()
  [ "$kind" = rules ] || flags=("$@")
  printf '\n== %s (judge %s)\n' "$suite" "$judge"
  status=0
  (evaluate "$suite" "$judge" "$model" "$data" "$out" ${flags[@]+"${flags[@]}"} && finish_evaluation) || status=$?
  case "$status" in
    0) evaluated+=("$suite") ;;
    1) evaluated+=("$suite (with findings)") ;;
    *) failed+=("$suite: see above") ;;
  esac
done 3<<<"$table"

echo
for suite in ${evaluated[@]+"${evaluated[@]}"}; do echo "evaluated $suite"; done
for suite in ${skipped[@]+"${skipped[@]}"}; do echo "skipped $suite"; done
for suite in ${failed[@]+"${failed[@]}"}; do echo "failed $suite"; done
[ ${#evaluated[@]} -gt 0 ] || echo "nothing was evaluated: no suite is in $data" >&2
[ ${#evaluated[@]} -gt 0 ] && [ ${#failed[@]} -eq 0 ] && [[ "${evaluated[*]}" != *findings* ]]
