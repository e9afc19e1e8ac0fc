#!/usr/bin/env bash
# eval/rtvlm.sh MODEL DATA OUT [judge flags …]: RTVLM for MODEL behind each defense, judged, compared, reported.
# The judge looks at images and has a model of its own, for example:
#   eval/rtvlm.sh checkpoints/safe-llava-7b data/rtvlm runs/rtvlm --base-url http://127.0.0.1:8001/v1 --judge-model NAME
# SUITE (default rtvlm; rtvlm_test where MODEL was trained on the rest); the other variables: see eval/evaluate.sh.
set -euo pipefail
source "$(dirname "$0")/../scripts/usage.sh"
needs "MODEL DATA OUT" "$@"
here="$(dirname "${BASH_SOURCE[0]}")"
source "$here/evaluate.sh"
model="$1" data="$2" out="$3"
shift 3
suite="${SUITE:-rtvlm}"
evaluate "$suite" rtvlm "$model" "$data" "$out" "$@"
finish_evaluation
