#!/usr/bin/env bash
# scripts/merge.sh RUN OUT [--stock …]: folds the LoRA into the LLM, compares logits, writes a complete checkpoint.
set -euo pipefail
source "$(dirname "$0")/usage.sh"
needs "RUN OUT" "$@"
command=(safevlm merge "$1" --out "$2" "${@:3}")
printf '%q ' "${command[@]}"
echo
[ -n "${DRY_RUN:-}" ] || exec "${command[@]}"
