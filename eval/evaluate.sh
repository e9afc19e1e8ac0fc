# Sourced by rtvlm.sh, all.sh and others: `evaluate SUITE JUDGE MODEL DATA OUT [judge flags …]` asks MODEL the suite's
# questions behind every defense, judges, compares each defense with the first one, and writes OUT/SUITE/report.html.
#
#   DEFENSES   defenses (default "none static-prompt safety-head"; a served model takes the first two)
#   JUDGE      instead of the suite's own judge
#   GPUS       processes that ask (default 1)
#   POLICY     YAML for safety-head
#   LIMIT      only so many requests per suite
#   BATCH_SIZE requests at once (default 16)
#   PARTIAL=1  go on with a suite that is not complete
#   DRY_RUN=1  print only
#
# Steps that were done are not done again: asking resumes, judges keep what their model said.

evaluation_findings=0

# Prints a command and runs it. 1 is a finding (a failed call, a reply without a score): noted, and the rest goes on.
step() {
  printf '%q ' "$@"
  echo
  [ -z "${DRY_RUN:-}" ] || return 0
  local status=0
  "$@" || status=$?
  [ "$status" -le 1 ] || exit "$status"
  [ "$status" -eq 0 ] || evaluation_findings=$((evaluation_findings + 1))
}

evaluate() {
  local suite="$1" judge="$2" model="$3" data="$4" name out
  name="$(basename "${suite%.y*ml}")" # of a YAML of one's own, its file's
  out="$5/$name"
  shift 5
  local safevlm=(safevlm) defense first="" runs=() asked=()
  [ "${GPUS:-1}" -eq 1 ] || safevlm=(torchrun --nproc_per_node "$GPUS" --module safevlm)
  for defense in ${DEFENSES:-none static-prompt safety-head}; do
    local run="$out/$defense"
    asked=("${safevlm[@]}" eval ask --suite "$suite" --data "$data" --model "$model" --defense "$defense" --out "$run"
      --batch-size "${BATCH_SIZE:-16}" ${LIMIT:+--limit "$LIMIT"} ${PARTIAL:+--partial})
    case "$defense" in *safety-head*) asked+=(${POLICY:+--policy "$POLICY"}) ;; esac
    step "${asked[@]}"
    step safevlm eval judge --out "$run" --judge "${JUDGE:-$judge}" "$@"
    [ -z "$first" ] || step safevlm eval compare "$out/$first" "$run" --out "$out/$first-$defense.json"
    first="${first:-$defense}"
    runs+=(--run "$defense=$run")
  done
  step safevlm eval report "${runs[@]}" --title "$name" --out "$out"
}

# Exit code of the whole: 1 when any step had a finding.
finish_evaluation() {
  [ "$evaluation_findings" -eq 0 ] || echo "$evaluation_findings steps had findings; see above" >&2
  [ "$evaluation_findings" -eq 0 ]
}

# `suites_in DATA [SUITE ...]`: a line `SUITE<tab>JUDGE<tab>model|rules<tab>there|absent|error<tab>why` for each (default:
# all benchmarks); JUDGE stands in for the suites' own judges.
suites_in() {
  local data="$1" suite words=()
  shift
  for suite in "$@"; do words+=(--suite "$suite"); done
  safevlm eval suites --tsv --data "$data" ${words[@]+"${words[@]}"} ${JUDGE:+--judge "$JUDGE"}
}
