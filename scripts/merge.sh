#!/usr/bin/env bash
# scripts/merge.sh RUN OUT: folds the LoRA into the LLM, compares logits, writes a complete checkpoint.
set -euo pipefail
exec safevlm merge "${1:?RUN}" --out "${2:?OUT}"
