#!/usr/bin/env bash
# scripts/merge.sh RUN OUT [--stock …]: folds the LoRA into the LLM, compares logits, writes a complete checkpoint.
set -euo pipefail
command=(safevlm merge "${1:?RUN}" --out "${2:?OUT}" "${@:3}")
printf '%q ' "${command[@]}"
echo
[ -n "${DRY_RUN:-}" ] || exec "${command[@]}"
