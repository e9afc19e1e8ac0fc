#!/usr/bin/env bash
# eval/agreement.sh OUT: the miniature in RTVLM's layout, judged by the exact judge and by the rubric through a server
# on this machine, and how far they agree; about a minute on one core. OUT/agreement.json receives the numbers.
# The server's judge goes by words and looks at no image, so this measures the way of the rubric, not a real judge.
#   MODEL     (default checkpoints/miniature)
#   DEFENSES  (default "none static-prompt oracle"; the oracle goes by the labels of the layout)
set -euo pipefail
source "$(dirname "$0")/../scripts/usage.sh"
needs "OUT" "$@"
source "$(dirname "$0")/../scripts/env.sh"
out="$1" model="${MODEL:-checkpoints/miniature}"
mkdir -p "$out"

[ -f "$out/data/miniature_truth.jsonl" ] || python -m safevlm.miniature data --layout rtvlm --out "$out/data"
# In the miniature some subsets are harmless images with plain questions, so the rubric `clean` scores the answers.
cp "$(dirname "$0")/protocols/miniature_rtvlm.yaml" "$out/data/rtvlm.yaml"

python -m safevlm.miniature judge-server --port 0 >"$out/server.txt" &
server=$!
trap 'kill "$server" 2>/dev/null || true' EXIT
for _ in $(seq 300); do
  [ ! -s "$out/server.txt" ] && kill -0 "$server" 2>/dev/null || break
  sleep 0.1
done
url="$(head -n 1 "$out/server.txt")"
[ -n "$url" ] || { echo "the judge's server did not start" >&2; exit 1; }

# Exit code 1 is a finding (a reply without a score), which the table counts.
judge() { safevlm eval judge "$@" || [ $? -eq 1 ]; }
pairs=()
for defense in ${DEFENSES:-none static-prompt oracle}; do
  run="$out/$defense"
  safevlm eval ask --suite rtvlm --data "$out/data" --model "$model" --defense "$defense" --out "$run" \
    --partial --max-new-tokens 64
  judge --out "$run" --judge miniature --truth "$out/data/miniature_truth.jsonl" --into "$run/exact"
  judge --out "$run" --judge rtvlm --judge-model by-words --base-url "$url" --into "$run/rubric"
  pairs+=(--more "$run/exact" "$run/rubric")
done
safevlm eval agreement "${pairs[@]:1:2}" "${pairs[@]:3}" --out "$out/agreement.json"
